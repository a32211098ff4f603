r"""Guidance: steering samples towards their condition, one way of choosing what to steer away from in a file.

A guidance turns a denoiser and a condition into the function that samplers call
(:mod:`~ldm_lightning.diffusion.denoised`). One convention holds everywhere: **scale 1 is the plain conditional model, 0
the model it is contrasted with**, larger values extrapolate,

.. math:: \hat z_0 = \hat z_0^{away} + s \, (\hat z_0^{towards} - \hat z_0^{away}).

The weights add to one, so guiding the clean data, the noise or a velocity is the same. For bits the hats are logits,
so that guiding multiplies their odds by a power of the ratio of the two models' odds. Some papers write 1 + w or
omega for what is s here. Whatever is steered away from (nothing, another condition, another network), the result may
be rescaled (:mod:`~ldm_lightning.diffusion.guidance.rescale`) and limited to a part of the path
(:mod:`~ldm_lightning.diffusion.guidance.interval`).
"""

from ldm_lightning.diffusion.denoised import Denoise, Guided
from ldm_lightning.diffusion.guidance.autoguidance import Autoguidance
from ldm_lightning.diffusion.guidance.classifier_free import ClassifierFree
from ldm_lightning.diffusion.guidance.interval import Interval
from ldm_lightning.diffusion.guidance.negative import NegativeCondition
from ldm_lightning.diffusion.guidance.steer import Guidance

__all__ = ["Autoguidance", "ClassifierFree", "Denoise", "Guidance", "Guided", "Interval", "NegativeCondition"]
