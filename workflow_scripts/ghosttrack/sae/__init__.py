"""Sparse autoencoders: `load` an exported one here; training lives in the modules beside.

`model` is the exported autoencoder. `architecture` says what an architecture is; `batchtopk`, `topk`, `jumprelu` and
`matryoshka` are four. `sparse_step` (CPU; kernels in `sparse`) and `dense_step` (GPU) are the two back ends of `engine`,
one optimizer step; `training` is the whole run, `quality` what comes out of it on other text,
`splicing` what the model makes of that.
"""

from ghosttrack.sae.model import Sae, load, load_files

__all__ = ["Sae", "load", "load_files"]
