"""The target of a visit: what is run, and on what. `gpu_check --target` names another module with these two."""

from gpu_visit import agenda as _agenda

agenda = _agenda.of_gpu()


def device():
    from gpu_visit.device import Cuda  # imports torch, for which the workers are

    return Cuda()
