"""Hugging Face's example scripts, unedited, with our techniques: does each run end as the script alone does?

Whoever runs this brings the scripts; none is part of this project. Tiny checkpoints with tokenizers and tiny files of
data are made in a temporary folder, so nothing is loaded from a network. `evaluate.load` would: what stands in for it
(and for `nltk`'s sentences) is in `stand_ins/`, the only thing that the scripts find other than at home.
"""
