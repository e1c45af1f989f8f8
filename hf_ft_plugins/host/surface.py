"""The surface: every private or fragile name of another library that we override, call, read or patch.

Such names change without a word in release notes. A method that is renamed leaves our override without a caller, and a
promise falls silently. So each stands here with what we expect of it and what falls with it, and is looked at when a
host is made (`surface_check.py`) and in the tests, one for each name. Who uses another such name adds a row.
"""

from __future__ import annotations

from .surface_name import Name

# What the table was last compared with; the same as in constraints.txt.
TESTED = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "5.2.0",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
}


TRAINER, CALLBACK, JIT = "transformers.trainer", "transformers.trainer_callback", "transformers.trainer_jit_checkpoint"
DDP = "torch.nn.parallel.distributed"
TRACKER = "torch.distributed._tools.mem_tracker"
DPO, KTO, SFT, REWARD = (f"trl.trainer.{name}_trainer" for name in ("dpo", "kto", "sft", "reward"))

RESUME = "A run that was stopped and resumed equals the run never stopped"
WHOLE = "A checkpoint is whole or passed over"
RANKS = "What one rank decides is decided on every rank"
SIGTERM = "A run that SIGTERM ends leaves a checkpoint from which it resumes exactly"
RATE = "The logged learning rate is the one that is applied"
FACTOR = "A technique's factor on the learning rate reaches the weights"
INPUTS = "Techniques supply data sets, collators and the columns that they read"
ORDER = "Techniques decide the order and the batches of the training data"
BATCHES = "Techniques see the batches of a step, of the size that auto_find_batch_size found"
OTHERS = "A script's evaluation of other data decides nothing"
MEASURED = "`hf-ft memory` tells what a run will take"
TREE = "What a model consists of is found"
UNDONE = "A technique that raises leaves the model as it was"
COUNTS = "A resumed run of TRL's logs the same counts as the run never stopped"
SHARED = "DPO computes what both completions begin with once, to the same result"
REMOVED = "A model with layers removed is saved and loaded as it was"
ADALORA = "AdaLoRA moves its ranks, and a resumed run has those of the run never stopped"
EMBEDDINGS = "adamw-8bit keeps moments of embeddings in 32 bits, and of nothing else"
MEANS = "Ranks that step within the backward pass step with the mean of their gradients"
LOOKS_ON = "`hf-ft suggest` leaves nothing behind"
QUANTISED = "A model that is quantised in place trains, merges and is saved as one loaded so"


def _trainer(
    name: str, promise: str, takes: str | None = None, by: str = "", *, by_name: str = "", used_in: str = "host"
) -> Name:
    """A method of Trainer, or, without `takes`, what its `__init__` sets; `by` names methods of Trainer."""
    users = " ".join(f"Trainer.{user}" for user in by.split())
    made_in = "Trainer.__init__" if takes is None else ""
    return Name(TRAINER, f"Trainer.{name}", used_in, promise, takes, users, by_name, made_in)


COLUMN_READERS = "_remove_unused_columns _get_collator_with_removed_columns"
OPTIMIZER_MAKERS = "_prepare_for_training create_optimizer_and_scheduler"
PLACE = "epoch epochs_trained steps_trained_in_current_epoch"
IN_PIECES = "A model that from_pretrained has cut up resumes exactly"
TRL_TRAINERS = ((DPO, "DPOTrainer"), (KTO, "KTOTrainer"), (SFT, "SFTTrainer"), (REWARD, "RewardTrainer"))

HOST: tuple[Name, ...] = (
    _trainer("__init__", "Techniques change the model before TRL looks at it", "..."),
    _trainer("train", RESUME, "resume_from_checkpoint trial ..."),
    _trainer("_run_epoch", RESUME, f"{PLACE} ...", "_inner_training_loop", by_name=PLACE),
    _trainer("_maybe_log_save_evaluate", RANKS, "...", "_run_epoch"),
    _trainer(
        *("_init_training_state", RESUME),
        "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        "_inner_training_loop",
    ),
    _trainer("_load_optimizer_and_scheduler", RESUME, "checkpoint", "_prepare_for_training"),
    _trainer("_save_optimizer_and_scheduler", IN_PIECES, "output_dir", "_save_checkpoint"),
    _trainer("_load_from_checkpoint", IN_PIECES, "resume_from_checkpoint model", "train"),
    _trainer("_save_checkpoint", WHOLE, "model trial", "_maybe_log_save_evaluate"),
    _trainer("create_model_card", "A model card says by which techniques its model was made", ""),
    _trainer("_save", "A stage's model is kept whole", "output_dir state_dict", used_in="techniques/sequential"),
    _trainer("_get_output_dir", WHOLE, "trial", "_save_checkpoint"),
    Name(CALLBACK, "TrainerState.save_to_json", "host", WHOLE, "json_path", f"{TRAINER}:Trainer._save_checkpoint"),
    Name(CALLBACK, "TrainerState.load_from_json", "host", RESUME, "json_path", f"{TRAINER}:Trainer.train"),
    *(
        Name(CALLBACK, f"TrainerState.{field}", "host", RESUME, used_by=f"{TRAINER}:Trainer._run_epoch")
        for field in ("epoch", "global_step", "max_steps")
    ),
    *(
        Name(CALLBACK, f"TrainerControl.{flag}", "host", RANKS, used_by=f"{TRAINER}:Trainer.{reader}")
        for flag, reader in (
            ("should_training_stop", "_run_epoch"),
            ("should_epoch_stop", "_run_epoch"),
            ("should_log", "_maybe_log_save_evaluate"),
            ("should_evaluate", "_maybe_log_save_evaluate"),
            ("should_save", "_maybe_log_save_evaluate"),
        )
    ),
    _trainer("_determine_best_metric", RANKS, "metrics trial", "_maybe_log_save_evaluate", by_name="metrics trial"),
    _trainer("_finalize_training", "Gates act before reports, and both before exports", "...", "_inner_training_loop"),
    _trainer("_load_best_model", "Each machine has the best model, on a disk of its own", "", "_finalize_training"),
    _trainer("_report_to_hp_search", "A trial that is pruned reports and exports nothing", "...", "_evaluate"),
    Name(
        *(CALLBACK, "CallbackHandler.callbacks", "host", "The events of a run reach techniques in a stated order"),
        made_in="CallbackHandler.__init__",
        used_by="CallbackHandler.call_event",
    ),
    Name(CALLBACK, "DefaultFlowCallback", "host", "What a technique logs is seen by every tracker"),
    Name(
        *(JIT, "JITCheckpointCallback.jit_manager", "host", SIGTERM),
        made_in="JITCheckpointCallback.__init__",
        used_by="JITCheckpointCallback.on_step_end",
    ),
    Name(
        *(JIT, "CheckpointManager.is_checkpoint_requested", "host", SIGTERM),
        made_in="CheckpointManager.__init__",
        used_by="CheckpointManager._enable_checkpoint JITCheckpointCallback.on_step_end",
    ),
    *(
        Name(JIT, f"JITCheckpointCallback.{event}", "host", SIGTERM, "args state control ...")
        for event in ("on_pre_optimizer_step", "on_step_begin", "on_step_end", "on_epoch_end")
    ),
    # ---- learning rate, optimizer, loss ----
    _trainer("_get_learning_rate", RATE, "", "_run_epoch _maybe_log_save_evaluate"),
    _trainer("log", "What a technique decides stands in the log", "logs start_time", "_maybe_log_save_evaluate"),
    _trainer("create_optimizer", "Techniques group the optimizer's parameters", "model", OPTIMIZER_MAKERS),
    _trainer("create_scheduler", "Techniques supply the schedule", "num_training_steps optimizer", OPTIMIZER_MAKERS),
    _trainer(
        "_created_lr_scheduler", "A trainer that trains twice makes its schedule anew", by="_prepare_for_training"
    ),
    _trainer("_clip_grad_norm", "A step within the backward pass logs its gradients' norm", "model", "_run_epoch"),
    _trainer("_get_grad_norm", "Techniques read the norm before clipping", "model grad_norm", "_run_epoch"),
    _trainer("get_batch_samples", BATCHES, "epoch_iterator num_batches device", "_run_epoch"),
    _trainer("training_step", "Techniques take the training step", "model inputs num_items_in_batch", "_run_epoch"),
    _trainer(
        *("compute_loss", "Techniques act on the loss of a batch"),
        *("model inputs return_outputs num_items_in_batch", "training_step prediction_step"),
    ),
    _trainer("compute_loss_func", "Techniques supply the loss", by="compute_loss"),
    # ---- data ----
    _trainer(
        *("_get_dataloader", ORDER, "dataset description batch_size sampler_fn is_training dataloader_key"),
        "get_train_dataloader get_eval_dataloader get_test_dataloader",
        by_name="dataset description batch_size sampler_fn is_training",
    ),
    _trainer(
        "predict", "An error in a technique's part says whose it is", "test_dataset ignore_keys metric_key_prefix"
    ),
    _trainer("_get_train_sampler", ORDER, "train_dataset", "get_train_dataloader"),
    _trainer("get_train_dataloader", ORDER, "", "_inner_training_loop"),
    _trainer(
        *("_get_eval_sampler", "Predictions come in the order of the data set"),
        *("eval_dataset", "get_eval_dataloader get_test_dataloader"),
    ),
    _trainer("_set_signature_columns_if_needed", INPUTS, "", COLUMN_READERS),
    _trainer("_signature_columns", INPUTS, by=COLUMN_READERS),
    _trainer("_remove_unused_columns", INPUTS, "dataset description", "_get_dataloader"),
    _trainer("_get_collator_with_removed_columns", INPUTS, "data_collator description", "_get_dataloader"),
    _trainer("_train_batch_size", BATCHES, by="get_train_dataloader", used_in="techniques"),
    Name("transformers.trainer_utils", "seed_worker", "host", RESUME, "worker_id num_workers rank"),
    Name("accelerate.state", "PartialState._prepare_backend", "testing", "FSDP2 is tried on CPUs", "..."),
    Name("accelerate.data_loader", "DataLoaderShard", "host", ORDER, "dataset device _non_blocking"),
    Name(
        "accelerate.data_loader", "prepare_data_loader", "host", INPUTS, "dataloader device num_processes put_on_device"
    ),
    *(
        Name(
            *(module, f"{cls}._prepare_dataset", "host", "Techniques see TRL's data before they are tokenized"),
            *("dataset args dataset_name ...", f"{cls}.__init__"),
        )
        for module, cls in TRL_TRAINERS
    ),
    # ---- model and evaluation ----
    _trainer("call_model_init", "Techniques change the model of every trial", "trial", "__init__ train"),
    _trainer("place_model_on_device", QUANTISED, by="train"),
    _trainer("_move_model_to_device", QUANTISED, "model device", "__init__ train"),
    _trainer("model_wrapped", "An adapter is what is trained", by="_prepare_for_training"),
    _trainer("evaluate", OTHERS, "eval_dataset ignore_keys metric_key_prefix", "_evaluate evaluate"),
    _trainer(
        *("evaluation_loop", "Techniques act on an evaluation"),
        *("dataloader description prediction_loss_only ignore_keys metric_key_prefix", "evaluate predict"),
        by_name="metric_key_prefix",
    ),
    # ---- command line ----
    Name(TRAINER, "DEFAULT_CALLBACKS", "cli", "`hf-ft compare` sees what runs log", used_by="Trainer.__init__"),
    Name(
        "transformers.training_args", "TrainingArguments.__post_init__", "cli", "`hf-ft compare` keeps runs apart", ""
    ),
    _trainer("init_hf_repo", LOOKS_ON, "", "__init__", used_in="cli"),
    _trainer("save_model", LOOKS_ON, "output_dir", used_in="cli"),
    Name(
        *("transformers.modeling_utils", "PreTrainedModel.from_pretrained", "suggest"),
        "`hf-ft suggest` tells pretrained weights from new ones",
        "pretrained_model_name_or_path",
    ),
    # ---- the learning-rate arbiter ----
    Name(
        *("torch.optim.optimizer", "Optimizer._optimizer_step_pre_hooks", "lr_scale", FACTOR),
        made_in="Optimizer.__init__",
        used_by="Optimizer.profile_hook_step",
    ),
    *(
        Name("torch.optim.optimizer", f"Optimizer.register_step_{when}_hook", "lr_scale", FACTOR, takes="hook")
        for when in ("pre", "post")
    ),
)

MODELS: tuple[Name, ...] = (
    *(
        Name("torch.nn.modules.module", f"Module.{table}", used_in, TREE, made_in="Module.__init__")
        for table, used_in in (
            ("_modules", "models techniques"),
            ("_parameters", "models memory"),
            ("_buffers", "models memory"),
        )
    ),
    Name("torch.utils._python_dispatch", "is_traceable_wrapper_subclass", "models", UNDONE, takes="t"),
    Name("transformers.quantizers.base", "HfQuantizer", "models", UNDONE),
    Name("transformers.utils", "ModelOutput", "models", UNDONE),
    Name(
        *("transformers.modeling_utils", "PreTrainedModel._init_weights", "models"),
        "A new output of a head begins as the model's own did",
        takes="module",
    ),
    Name(
        *("transformers.models.led.modeling_led", "LEDEncoder._pad_to_window_size", "models"),
        "LED's limit of tokens leaves room for its padding",
    ),
    Name("transformers.pytorch_utils", "Conv1D", "models techniques", "GPT-2's layers are known as linear ones"),
)

MEMORY: tuple[Name, ...] = (
    Name("transformers.modeling_utils", "PreTrainedModel._from_config", "memory", MEASURED, "config ..."),
    Name("torch._subclasses.fake_tensor", "FakeTensorMode", "memory", MEASURED, ""),
    Name("torch.utils._python_dispatch", "TorchDispatchMode", "memory", MEASURED, ""),
    Name("torch", "_grouped_mm", "memory", MEASURED),
    Name(TRACKER, "MemTracker", "memory", MEASURED, ""),
    Name(TRACKER, "MemTracker.track_external", "memory", MEASURED, "..."),
    Name(TRACKER, "MemTracker.get_tracker_snapshot", "memory", MEASURED, "type"),
    Name(TRACKER, "MemTracker._param_to_grad_hook_handles", "memory", MEASURED, made_in="MemTracker.__init__"),
)

STEPPING, STEPPED = (
    "techniques/multitask techniques/low_memory",
    "A technique's own step computes the loss as Trainer's",
)

TECHNIQUES: tuple[Name, ...] = (
    Name(
        *("torch", "_amp_foreach_non_finite_check_and_unscale_", "techniques/adaptive_lr"),
        "A step whose gradients are not finite is found",
        used_by="torch.amp.grad_scaler:GradScaler._unscale_grads_",
    ),
    Name(
        *("torch.optim.lr_scheduler", "LRScheduler._last_lr", "techniques/adaptive_lr", RATE),
        made_in="LRScheduler._update_lr",
        used_by="LRScheduler.get_last_lr",
    ),
    Name(TRAINER, "Trainer._prepare_inputs", STEPPING, STEPPED, takes="inputs"),
    Name(
        *(TRAINER, "Trainer.compute_loss_context_manager", STEPPING, STEPPED),
        takes="",
        used_by="Trainer.training_step",
    ),
    Name(
        *(TRAINER, "Trainer.current_gradient_accumulation_steps", "techniques/low_memory", STEPPED),
        made_in="Trainer._run_epoch",
        used_by="Trainer.training_step",
    ),
    Name(
        *(TRAINER, "Trainer.model_accepts_loss_kwargs", "techniques/low_memory", STEPPED),
        made_in="Trainer.__init__",
        used_by="Trainer.training_step",
    ),
    Name(
        "accelerate.utils", "send_to_device", "techniques/multitask", "Tasks are checked first", takes="tensor device"
    ),
    *(
        Name(*row, "models", "An encoder of T5's kind is one without its decoder")
        for row in (
            ("transformers.models.auto.modeling_auto", "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES"),
            ("transformers.modeling_utils", "PreTrainedModel._supports_sdpa"),
        )
    ),
    Name(
        *("transformers.configuration_utils", "PreTrainedConfig._attn_implementation", "techniques"),
        "Attention is given a mask of the form that it takes",
        made_in="PreTrainedConfig.__post_init__",
    ),
    Name(
        *("transformers.configuration_utils", "PreTrainedConfig._name_or_path", "techniques/behavioral"),
        "An error about a reference model says where it came from",
        made_in="PreTrainedConfig.name_or_path",
    ),
    # ---- steps within the backward pass ----
    Name(
        *(DDP, "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model", "techniques/low_memory", MEANS),
        takes="module params_and_buffers_to_ignore",
    ),
    *(
        Name(DDP, f"DistributedDataParallel.{name}", "techniques/low_memory", MEANS, made_in=maker)
        for name, maker in (
            ("parameters_to_ignore", "DistributedDataParallel.__init__"),
            (
                "_ddp_params_and_buffers_to_ignore",
                "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model",
            ),
            ("_ddp_ignored", "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model"),
        )
    ),
    # ---- layers removed ----
    Name("transformers.configuration_utils", "ALLOWED_LAYER_TYPES", "techniques/layer_removal", REMOVED),
    *(
        Name(
            *(
                "transformers.backbone_utils",
                f"BackboneConfigMixin.{field}",
                "techniques/layer_removal",
                REMOVED,
            ),
            made_in="BackboneConfigMixin.set_output_features_output_indices",
        )
        for field in ("_out_indices", "_out_features")
    ),
    Name(
        *("transformers.integrations.heterogeneity.configuration_utils", "PreTrainedConfig._heterogeneity_spec"),
        *("techniques/layer_removal", REMOVED),
        made_in="_apply_heterogeneous_config",
    ),
    Name(
        *("transformers.models.rwkv.modeling_rwkv", "RwkvModel._rescale_layers", "techniques/layer_removal", REMOVED),
        takes="",
    ),
    # ---- text ----
    Name(
        *("torch.nn.modules.module", "Module._forward_pre_hooks", "techniques/text2text"),
        "Pairs that are packed into a row do not see each other",
        made_in="Module.__init__",
    ),
    Name(
        *("datasets.arrow_dataset", "Dataset._indices", "techniques/text2text", "Columns are read in the rows' order"),
        made_in="Dataset.__init__",
    ),
    Name(
        *("datasets.iterable_dataset", "IterableDataset._distributed", "techniques/text2text"),
        "A stream that is split by node is refused",
        made_in="IterableDataset.__init__",
    ),
    # ---- preferences ----
    *(
        Name(
            *(module, f"{cls}.{field}", "techniques/behavioral", COUNTS),
            made_in=f"{cls}.__init__",
            used_by=f"{cls}.log" if field == "_metrics" else "",
        )
        for module, cls in TRL_TRAINERS
        for field in ("_metrics", "_total_train_tokens")
    ),
    *(
        Name(
            *(DPO, f"DPOTrainer.{field}", "techniques/behavioral", promise),
            made_in="DPOTrainer.__init__",
            used_by=f"DPOTrainer.{function}",
        )
        for field, function, promise in (
            ("loss_types", "_compute_loss", "DPO takes the probability that a pair is wrong"),
            ("label_smoothing", "_compute_loss", "DPO takes the probability that a pair is wrong"),
            ("aux_loss_enabled", "_compute_loss", SHARED),
            ("precompute_ref_logps", "_compute_loss", "Turns of the user are not scored"),
            ("ref_model", "_compute_loss", "A reference that is not the model is refused"),
        )
    ),
    *(
        Name("trl.trainer.utils", f"FusedCausalLMOutput.{field}", "techniques/behavioral", SHARED)
        for field in ("loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")
    ),
    Name(
        *(
            "trl.data_utils",
            "_tokenize",
            "techniques/behavioral",
            "Preferences are fitted to the lengths that TRL sees",
        ),
        takes="processing_class input",
        used_by=f"{DPO}:DPOTrainer._prepare_dataset",
    ),
    # ---- adapters ----
    Name(
        "peft.tuners.adalora.model",
        "AdaLoraModel.rankallocator",
        "techniques/peft",
        ADALORA,
        made_in="AdaLoraModel.__init__",
    ),
    *(
        Name("peft.tuners.adalora.layer", f"RankAllocator.{method}", "techniques/peft", ADALORA, takes=takes)
        for method, takes in (
            ("update_and_allocate", "model global_step force_mask"),
            ("mask_using_rank_pattern", "model rank_pattern"),
            ("reset_ipt", ""),
        )
    ),
    *(
        Name(
            *("peft.tuners.adalora.layer", f"RankAllocator.{scores}", "techniques/peft", ADALORA),
            made_in="RankAllocator.reset_ipt",
            used_by="RankAllocator.update_ipt",
        )
        for scores in ("ipt", "exp_avg_ipt", "exp_avg_unc")
    ),
    *(
        Name("peft.tuners.lora.eva", function, "techniques/peft", "EVA begins from the training data", takes=takes)
        for function, takes in (
            ("get_eva_state_dict", "model dataloader gather_distributed_inputs show_progress_bar"),
            ("initialize_lora_eva_weights", "model eva_state_dict gather_distributed_inputs"),
        )
    ),
    *(
        Name(*row, "techniques/peft", "An adapter is told from its base")
        for row in (
            ("peft.mapping", "PEFT_TYPE_TO_CONFIG_MAPPING"),
            ("peft.tuners.tuners_utils", "BaseTunerLayer.merged"),
            ("peft.utils.other", "AuxiliaryTrainingWrapper"),
            ("peft.utils.other", "TrainableTokensWrapper"),
        )
    ),
    Name(
        *("bitsandbytes.nn.modules", "Linear4bit.support_avx512bf16_for_cpu", "techniques/peft"),
        "Gradients of NF4 layers on a CPU are those of their weights",
        made_in="Linear4bit.__init__",
        used_by="Linear4bit.forward",
    ),
    Name(
        *("bitsandbytes.nn.modules", "Linear4bit", "techniques/peft", QUANTISED),
        takes="input_features output_features bias compute_dtype compress_statistics quant_type",
    ),
    Name(
        *("bitsandbytes.nn.modules", "Linear8bitLt", "techniques/peft", QUANTISED),
        takes="input_features output_features bias has_fp16_weights threshold",
    ),
    *(
        Name("bitsandbytes.functional", function, "techniques/peft", QUANTISED, takes=takes)
        for function, takes in (("dequantize_4bit", "A quant_state"), ("int8_vectorwise_dequant", "A stats"))
    ),
    Name(
        *("transformers.quantizers.auto", "AutoHfQuantizer.from_config", "techniques/peft", QUANTISED),
        takes="quantization_config",
    ),
    Name(
        *("transformers.trainer", "Trainer.current_gradient_accumulation_steps", "techniques/low_memory"),
        "accumulation=fold weights squares of gradients by how many micro-batches make the step",
        made_in="Trainer._run_epoch",
        used_by="Trainer.training_step",
    ),
    Name(
        *("bitsandbytes.optim.optimizer", "Optimizer8bit.mng", "techniques/low_memory", EMBEDDINGS),
        made_in="Optimizer8bit.__init__",
        used_by="Optimizer8bit.check_overrides Optimizer8bit.get_config",
    ),
    *(
        Name("bitsandbytes.optim.optimizer", f"GlobalOptimManager.{method}", "techniques/low_memory", EMBEDDINGS, takes)
        for method, takes in (("initialize", ""), ("register_module_override", "module param_name config"))
    ),
)

SURFACE = HOST + MODELS + MEMORY + TECHNIQUES
