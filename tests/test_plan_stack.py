"""The planner on stacks: how many layers run abreast, in how many parts, and what the model expects of it."""

import itertools

import pytest

core = pytest.importorskip("fusedlstm._core", reason="built without pybind11")

DEVICES = {device.name: device for device in core.known_devices()}


def plan(device="H200", T=512, B=16, H=256, layers=4, dtype="bfloat16", **options):
    return core.plan(device=DEVICES[device], T=T, B=B, H=H, layers=layers, dtype=dtype, **options)


def at_once(device, chosen):
    """Layers whose kernels the device runs at the same time."""
    if chosen.transport == "cluster":
        size = next(n for n in (2, 4, 8, 16) if chosen.ctas_per_tile <= n)
        return getattr(device, f"max_clusters_of_{size}") // chosen.tiles
    return device.sm_count // (chosen.ctas_per_tile * chosen.tiles)


@pytest.mark.parametrize("device", ["H100", "H200", "B200"])
def test_small_layers_run_abreast(device):
    chosen, loop = plan(device), plan(device, request="/1x1")
    assert chosen.abreast == 4 and loop.abreast == loop.parts == 1
    assert chosen.microseconds <= 0.45 * loop.microseconds
    assert f"4 layers abreast in {chosen.parts} parts" in str(chosen) and "abreast" not in str(loop)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("device", DEVICES)
def test_layers_abreast_fit_together(device, backward):
    """Above all those whose CTAs wait for each other. Whatever is asked for."""
    for H, B, L, dtype in itertools.product((20, 128, 256, 600), (1, 16, 100), (2, 3, 12), ("bfloat16", "float32")):
        for request in ("", "/12x4", "grid/12x4", "/1x9"):
            try:
                chosen = plan(device, H=H, B=B, layers=L, dtype=dtype, backward=backward, request=request)
            except ValueError as error:
                assert "does not fit" in str(error)
                continue
            assert 1 <= chosen.abreast <= L and (chosen.parts == 1) == (chosen.abreast == 1)
            if chosen.abreast > 1:
                assert chosen.transport != "stream" and chosen.abreast <= at_once(DEVICES[device], chosen)


@pytest.mark.parametrize(
    "alone",
    [{"directions": 2}, {"proj_size": 64}, {"dtype": "float64"}, {"T": 1}, {"H": 1024}, {"T": 32, "B": 64, "H": 64}],
    ids=str,
)
def test_layers_one_after_another(alone):
    """Both directions of a layer need all of the one below; kernels of single steps, or on all SMs, leave no room; and
    few steps are over before they are divided."""
    chosen = plan(**alone)
    assert chosen.abreast == 1 and chosen.microseconds == plan(**alone, request="/1x1").microseconds


def test_never_expected_to_take_longer():
    for T, H, L, backward in itertools.product((2, 30, 512, 5000), (64, 256, 512), (2, 5), (False, True)):
        options = {"T": T, "H": H, "layers": L, "backward": backward}
        assert plan(**options).microseconds <= plan(**options, request="/1x1").microseconds


def memory(chosen):
    """Forward, bytes of a row of all steps for each unit: outputs of bfloat16, input products of 4 gates in float32."""
    return 2 * (chosen.abreast + 1) + 16 * chosen.abreast / chosen.parts


@pytest.mark.parametrize("layers", [2, 4, 8, 30])
def test_memory_is_bounded(layers):
    """At most 1.1 times that of one layer after another: for a backward pass that is fewer layers the fewer there are,
    since each layer abreast has the gradients of all its gates at once."""
    chosen, loop = plan(layers=layers), plan(layers=layers, request="/1x1")
    assert memory(chosen) <= 1.1 * memory(loop)
    kept = layers * (8 + 4 + 2)  # what backward finds: gates, cell state, output
    back = plan(layers=layers, backward=True).abreast
    assert kept + 8 * back + 2 * (1 + max(back - 1, 2)) <= 1.1 * (kept + 16)


def test_request():
    chosen = plan(request="cluster:32x8x256/3x9")
    assert (chosen.transport, chosen.units, chosen.abreast, chosen.parts) == ("cluster", 32, 3, 9)
    chosen = plan(request="/9x9", T=5, layers=3, dtype="float16", H=20)
    assert (chosen.abreast, chosen.parts) == (3, 5)
    assert plan(request="/9x9", layers=1).abreast == 1
    assert plan(request="stream/4x8").abreast == 1


@pytest.mark.parametrize(
    "wrong", ["/", "/4", "/4x", "/0x4", "/4x0", "/4x-1", "/4x8x2", "cluster/", "/4x8 ", "fast/1x1"]
)
def test_unknown_request(wrong):
    with pytest.raises(ValueError, match=f"for stacks perhaps /LAYERSxPARTS, got '{wrong}'"):
        plan(request=wrong)


def test_wrong_layers():
    with pytest.raises(ValueError, match=r"layers >= 1.* got .*layers=0"):
        plan(layers=0)
