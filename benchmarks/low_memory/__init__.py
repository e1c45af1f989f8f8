"""What `low-memory` saves, what it costs, and what it learns.

    python -m benchmarks.low_memory [--only peak|bytes|exact|time|quality|accumulation|resume|paper] [--quick] [--json]
        [--write] [--device cuda]

- peak: MiB of a stock run's peak and of ours, of 98 million parameters in float32, each in a process of its own: on the
  CPU the resident memory beyond what was there before the model was made, and what torch's own tracker counts
  (`counted`, with its `counted_ratio`); on a GPU `max_memory_allocated`.
- bytes: of weight, gradient and state a parameter, by what is allocated.
- exact: whether 20 steps within the backward pass give the weights of the same optimizer stepped after it.
- time: seconds of a training step, in turns.
- quality: the last loss on held-out text or reviews after equal steps, each algorithm at its best of three rates, which
  are chosen on another seed.
- accumulation: one step of four micro-batches against one of the whole batch.
- resume: runs that are cut off at a step and resumed, against the run never cut off.
- paper: the estimate for seven billion parameters in bfloat16.
"""
