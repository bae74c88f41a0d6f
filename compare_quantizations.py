"""Converts a trained FP32 model to FP16 and INT8, evaluates each on the test set, measures files, prices traffic."""

from fl.__main__ import door

door("compare", __name__)
