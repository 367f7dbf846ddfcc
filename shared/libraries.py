"""The libraries that take seconds to load, loaded whole and in one order. An app imports this before anything else of ours.

In a simulation Flower loads the server's app and a site's in two threads of one process, and two threads that enter torch by
different doors find it half loaded (Python lets one of them go on, to avoid a deadlock). Here the second waits until the first is
through. At a hospital the process that app processes are forked from has them loaded for all.
"""

import diffusers.models.unets.unet_2d
import diffusers.schedulers.scheduling_ddim
import diffusers.schedulers.scheduling_ddpm
import diffusers.schedulers.scheduling_dpmsolver_multistep
import opacus
import torch

LOADED = (torch, opacus, diffusers)
