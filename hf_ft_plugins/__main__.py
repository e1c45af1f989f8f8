"""`python -m hf_ft_plugins` is `hf-ft`: the form that `torchrun -m` and `accelerate launch -m` take."""

from .cli.app import main

main()
