"""Sparse autoencoders: inference, training, and quality.

`model` is the exported autoencoder, and `load` reads one. `architecture` is the interface of the
four architectures `batchtopk`, `topk`, `jumprelu` and `matryoshka`. `engine` is one optimizer step,
with two back ends: `sparse_step` for a CPU (kernels in `sparse`) and `dense_step` for a GPU.
`training` is the whole run, `quality` the reconstruction of held-out text, and `splicing` the loss
of the model with the reconstruction in its forward pass.
"""

from ghosttrack.sae.model import Sae, load, load_files

__all__ = ["Sae", "load", "load_files"]
