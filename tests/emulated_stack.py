"""Layers on top of each other on the emulated GPU: by the host code of a stack (cuda/host/stack.h), and one by one.

Results are a list, of each layer a dict of tensors as those of `Emulated`.
"""

from emulated_layer import EVERYTHING, Emulated, Layer


def new_layers(T, B, H, count, features=6, **options):
    """Layers of a stack, the lowest first. Those above take what is put out below, whatever they were drawn with."""
    first = Layer(T, B, H, features=features, **options)
    options = options | {"batch_first": False}
    return [first, *[Layer(T, B, H, features=first.R, seed=seed, **options) for seed in range(1, count)]]


def wanted_of(l):
    """What is wanted of layer l; the gradient of an input that is another's output goes from layer to layer."""
    return EVERYTHING if l == 0 else [name for name in EVERYTHING if name != "input"]


def run_one_by_one(emu, layers, request):
    """Results and gradients of every layer, each a call of its own."""
    runs = [Emulated(emu, layer, request) for layer in layers]
    out = []
    for l, run in enumerate(runs):
        if l > 0:
            run.layer.t["input"] = out[-1]["output"]
        out.append(run.forward())
    above = layers[-1].t["d_output"]
    for l in reversed(range(len(layers))):
        layers[l].t["d_output"] = above
        gradients = runs[l].backward(out[l], EVERYTHING)
        above = gradients["d_input"]
        out[l] |= {name: value for name, value in gradients.items() if l == 0 or name != "d_input"}
    return out


class EmulatedStack:
    """Runs layers, the lowest first, by one call of the host code for each pass, as FUSEDLSTM_PLAN=`request` says."""

    def __init__(self, emu, layers, request, device="H200"):
        self.runs = [Emulated(emu, layer, request, device) for layer in layers]
        self.host, self.memory = self.runs[0].host, self.runs[0].memory
        for run in self.runs:
            run.memory = self.memory

    def choice(self, backward=False):
        with self.memory:
            return self.host.choose_stack(self.runs[0].arguments(), len(self.runs), backward)

    def forward(self, training=True):
        out, arguments, results = [], [], []
        with self.memory:
            for run in self.runs:
                if out:
                    run.layer.t["input"] = out[-1]["output"]
                new, views = run.new_results(training)
                out.append(new)
                results.append(views)
            arguments = [run.arguments() for run in self.runs]
            choice = self.host.choose_stack(arguments[0], len(self.runs), False)
            self.host.run_forward_stack(arguments, results, choice)
        return out

    def backward(self, out):
        """Gradients from what `forward` gave, of the layers as they are there."""
        incoming, found, gradients = [], [], []
        with self.memory:
            for l, run in enumerate(self.runs):
                if l + 1 < len(self.runs):
                    run.layer.t["d_output"] = None
                new, views = run.new_gradients(wanted_of(l))
                gradients.append(new)
                found.append(views)
                incoming.append(run.incoming(out[l]))
            arguments = [run.arguments() for run in self.runs]
            choice = self.host.choose_stack(arguments[-1], len(self.runs), True)
            self.host.run_backward_stack(arguments[::-1], incoming[::-1], found[::-1], choice)
        return gradients

    def run(self):
        out = self.forward()
        return [results | gradients for results, gradients in zip(out, self.backward(out))]
