"""What the experiments share: layers of both kinds, forced plans, differences and their limits."""

import os

import torch

from fusedlstm import FusedLSTM

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}

# Of two right results, relative to the norm: h is rounded at every step, which is a few units of roundoff. Float32 has
# many more, from functions by ex2.approx and sums of thousands of terms.
LIMITS = {"bfloat16": 10 * 2**-9, "float16": 10 * 2**-11, "tf32": 10 * 2**-11, "float32": 300 * 2**-24}
WORST = 16  # times as far may a single element be, relative to their root mean square: there are large ones among them


def use(precision, plan=""):
    """Switches TF32 for ours and for cuDNN, and forces a plan of ours."""
    os.environ["FUSEDLSTM_PLAN"] = plan
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def pair(device, features, H, precision, **options):
    """The same layers twice: ours and torch's."""
    ours = FusedLSTM(features, H, **options).to(device.name, DTYPES[precision])
    cudnn = torch.nn.LSTM(features, H, **options).to(device.name, DTYPES[precision])
    cudnn.load_state_dict(ours.state_dict())
    cudnn.flatten_parameters()
    return ours, cudnn


def exact(module):
    """nn.LSTM with the same weights in float64, on the CPU."""
    options = {name: getattr(module, name) for name in ("input_size", "hidden_size", "num_layers")}
    right = torch.nn.LSTM(**options).double()
    right.load_state_dict({name: value.double().cpu() for name, value in module.state_dict().items()})
    return right


def random_input(device, precision, *sizes):
    return torch.randn(*sizes, device=device.name).to(DTYPES[precision])


def forward_and_gradients(module, x):
    """The output, and the gradients of the sum of its squares."""
    out = module(x)[0]
    return [out, *torch.autograd.grad(out.double().square().sum(), list(module.parameters()))]


def fits(device, call):
    """False where the planner refuses the forced plan."""
    try:
        call()
    except RuntimeError as error:
        if "does not fit" in str(error):
            return False
        raise
    device.synchronize()
    return True


def flat(results):
    """The tensors of a result with lists in it."""
    return [tensor for r in results for tensor in (r if isinstance(r, (list, tuple)) else [r])]


def difference(got, expected):
    """(of the norms, of one element over their root mean square): the largest of all tensors; NaN if any is NaN."""
    errors, worst = [0.0], [0.0]
    for a, b in zip(flat(got), flat(expected), strict=True):
        if b.numel():
            right = b.detach().double()
            apart, norm = a.detach().to(b.device).double() - right, right.norm().item() or 1.0
            errors.append(apart.norm().item() / norm)
            worst.append(apart.abs().max().item() / norm * b.numel() ** 0.5)
    return tuple(max(e) if all(x == x for x in e) else float("nan") for e in (errors, worst))


def verdict(precision, error, worst=0.0):
    """{"failed": why} for a difference that right results do not have, else {}."""
    limit = LIMITS[precision]
    if error <= limit and worst <= WORST * limit:
        return {}
    return {"failed": f"wrong value: expected a difference of at most {limit:.1e}, and {WORST * limit:.1e} of one "
            f"element, got {error:.1e} and {worst:.1e}"}  # fmt: skip
