"""The launch planner on a table of problems and GPUs: what fits, what is chosen, and the reasons against the rest."""

import itertools

import pytest

core = pytest.importorskip("fusedlstm._core", reason="built without pybind11")

DEVICES = {device.name: device for device in core.known_devices()}
RESIDENT = ("local", "cluster", "grid")  # which have kernels of both passes in every arithmetic
ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "tf32": 4, "float32": 4}


LARGE = {"H": 1024, "B": 64, "dtype": "bfloat16", "backward": True}


def plan(device="H200", T=512, B=16, H=512, **options):
    return core.plan(device=DEVICES[device], T=T, B=B, H=H, **options)


def test_known_devices():
    assert set(DEVICES) == {"T4", "A100", "A10", "L4", "H100", "H200", "B200", "RTX 5090"}


@pytest.mark.parametrize(
    ("problem", "transport"),
    [
        # What the kernels were made for: small layers in one CTA, medium ones in clusters, large ones on all SMs.
        ({"H": 20, "B": 2, "dtype": "bfloat16"}, "local"),
        ({"H": 64, "B": 64, "dtype": "float16"}, "local"),
        ({"H": 256, "B": 64, "dtype": "bfloat16"}, "cluster"),
        ({"H": 1024, "B": 16, "dtype": "bfloat16"}, "grid"),
        ({"H": 1024, "B": 16, "dtype": "bfloat16", "backward": True}, "grid"),
        # Backward, K is four times as large: clusters that share it hold more rows.
        ({"H": 1024, "B": 64, "dtype": "bfloat16", "backward": True}, "mesh"),
        ({"H": 640, "B": 33, "dtype": "float16", "backward": True}, "mesh"),
        ({"H": 1024, "B": 65, "dtype": "bfloat16", "backward": True}, "stream"),
        ({"H": 1024, "B": 32, "dtype": "float32", "backward": True}, "mesh"),
        ({"H": 1024, "B": 64, "dtype": "float32", "backward": True}, "mesh"),
        ({"device": "B200", "H": 1024, "B": 64, "dtype": "float32", "backward": True}, "stream"),  # faster there
        ({"H": 1024, "B": 65, "dtype": "float32", "backward": True}, "stream"),
        ({"H": 1024, "B": 32, "dtype": "float32", "allow_tf32": False, "backward": True}, "stream"),
        ({"device": "B200", "H": 1024, "B": 64, "dtype": "bfloat16", "backward": True}, "mesh"),
        ({"device": "RTX 5090", "H": 512, "B": 64, "dtype": "float16", "backward": True}, "mesh"),
        ({"device": "A100", "H": 1024, "B": 64, "dtype": "bfloat16", "backward": True}, "stream"),
        ({"H": 1150, "B": 16, "dtype": "bfloat16"}, "grid"),  # with a part of the weights in shared memory
        ({"H": 1150, "B": 8, "dtype": "bfloat16", "backward": True}, "grid"),
        ({"H": 1024, "B": 64, "dtype": "bfloat16"}, "grid"),
        ({"H": 640, "B": 96, "dtype": "float16"}, "grid"),
        ({"device": "A100", "H": 1024, "B": 32, "dtype": "bfloat16"}, "grid"),
        ({"device": "A100", "H": 864, "B": 64, "dtype": "float16"}, "grid"),
        ({"device": "A100", "H": 1024, "B": 64, "dtype": "bfloat16"}, "stream"),  # too few SMs for those rows of h
        ({"device": "A10", "H": 1024, "B": 16, "dtype": "bfloat16"}, "grid"),
        ({"device": "RTX 5090", "H": 1024, "B": 32, "dtype": "bfloat16"}, "grid"),
        ({"device": "RTX 5090", "H": 672, "B": 64, "dtype": "float16"}, "grid"),
        ({"device": "RTX 5090", "H": 1024, "B": 33, "dtype": "bfloat16"}, "stream"),  # has no room for 32 rows of h
        ({"H": 2048, "B": 8, "dtype": "float16"}, "grid"),
        ({"H": 2048, "B": 8, "dtype": "float16", "backward": True}, "stream"),
        ({"device": "A100", "H": 2048, "B": 8, "dtype": "float16"}, "stream"),
        ({"H": 512, "B": 16, "dtype": "float32", "backward": True}, "cluster"),
        # Of 32 bits, with all SMs for one tile of batch rows.
        ({"H": 1024, "B": 8, "dtype": "float32"}, "grid"),
        ({"H": 1024, "B": 16, "dtype": "float32", "allow_tf32": False}, "grid"),
        ({"H": 1024, "B": 32, "dtype": "float32"}, "mesh"),
        ({"device": "RTX 5090", "H": 1024, "B": 32, "dtype": "float32"}, "mesh"),
        ({"device": "RTX 5090", "H": 1024, "B": 33, "dtype": "float32"}, "stream"),  # has room for 32 rows in a block
        ({"H": 1024, "B": 33, "dtype": "float32"}, "mesh"),
        ({"H": 1000, "B": 64, "dtype": "float32"}, "mesh"),
        ({"H": 640, "B": 64, "dtype": "float32"}, "mesh"),
        ({"device": "B200", "H": 1024, "B": 64, "dtype": "float32"}, "mesh"),
        ({"device": "B200", "H": 768, "B": 64, "dtype": "float32"}, "stream"),  # faster there
        ({"H": 1024, "B": 65, "dtype": "float32"}, "stream"),
        ({"H": 1024, "B": 33, "dtype": "float32", "allow_tf32": False}, "stream"),
        ({"device": "A100", "H": 864, "B": 16, "dtype": "float32"}, "grid"),
        ({"device": "A100", "H": 512, "B": 8, "dtype": "bfloat16"}, "grid"),
        ({"device": "RTX 5090", "H": 640, "B": 8, "dtype": "float16"}, "grid"),
        ({"device": "T4", "H": 40, "B": 10, "dtype": "float16"}, "local"),
        ({"device": "L4", "H": 100, "B": 2, "dtype": "bfloat16"}, "local"),
        # What they cannot hold, or cannot gain on.
        ({"H": 4096, "B": 8, "dtype": "bfloat16"}, "stream"),
        ({"H": 1024, "B": 512, "dtype": "bfloat16"}, "stream"),
        ({"H": 256, "B": 16, "dtype": "float64"}, "stream"),
        ({"device": "T4", "H": 64, "B": 8, "dtype": "bfloat16"}, "stream"),
        # Other cells: the fewer gates, the more units of one fit into the same chip.
        ({"cell": "gru", "H": 64, "B": 64, "dtype": "float16"}, "local"),
        ({"cell": "gru", "H": 256, "B": 16, "dtype": "bfloat16"}, "cluster"),
        ({"cell": "gru", "H": 256, "B": 16, "dtype": "bfloat16", "backward": True}, "cluster"),
        ({"cell": "gru", "H": 1024, "B": 8, "dtype": "bfloat16", "backward": True}, "grid"),
        ({"cell": "gru", "H": 2048, "B": 8, "dtype": "float16", "backward": True}, "grid"),
        ({"device": "A100", "cell": "gru", "H": 100, "B": 8, "dtype": "bfloat16"}, "local"),
        ({"cell": "gru", "H": 4096, "B": 8, "dtype": "bfloat16"}, "stream"),
        ({"cell": "gru", "H": 256, "B": 16, "dtype": "float64"}, "stream"),
        ({"cell": "rnn_tanh", "H": 100, "B": 16, "dtype": "float32"}, "local"),
        ({"cell": "rnn_relu", "H": 512, "B": 16, "dtype": "bfloat16"}, "cluster"),
        ({"cell": "rnn_relu", "H": 256, "B": 16, "dtype": "bfloat16", "backward": True}, "cluster"),
        ({"cell": "rnn_tanh", "H": 2048, "B": 8, "dtype": "bfloat16"}, "grid"),
        # Projected: what the effective weight fits into, if the steps are worth its product.
        ({"H": 256, "B": 16, "proj_size": 64, "dtype": "bfloat16"}, "cluster"),
        ({"H": 1024, "B": 16, "proj_size": 256, "dtype": "bfloat16"}, "grid"),
        ({"H": 1024, "B": 16, "proj_size": 256, "dtype": "bfloat16", "backward": True}, "grid"),
        ({"H": 1024, "B": 16, "proj_size": 256, "dtype": "bfloat16", "T": 2}, "stream"),
        ({"H": 2048, "B": 64, "proj_size": 512, "dtype": "bfloat16"}, "stream"),
    ],
    ids=str,
)
def test_choice(problem, transport):
    chosen = plan(**problem)
    assert chosen.transport == transport, chosen


@pytest.mark.parametrize("allow_tf32", [True, False])
def test_arithmetic(allow_tf32):
    expected = {"float32": "tf32" if allow_tf32 else "float32"} | {d: d for d in ("float64", "bfloat16", "float16")}
    for dtype, arithmetic in expected.items():
        assert plan(dtype=dtype, allow_tf32=allow_tf32).arithmetic == arithmetic


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn_relu", 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_plans_fit_the_device(device, cell, gates, backward):
    limits = DEVICES[device]
    dtypes, hidden, batches = ("bfloat16", "float16", "float32"), (1, 7, 33, 128, 200, 512, 1000), (1, 9, 64, 300)
    for dtype, H, B, directions in itertools.product(dtypes, hidden, batches, (1, 2)):
        problem = {
            "device": device,
            "cell": cell,
            "dtype": dtype,
            "H": H,
            "B": B,
            "directions": directions,
            "backward": backward,
        }
        chosen = plan(**problem)
        assert chosen.microseconds > 0
        if chosen.transport == "stream":
            assert chosen.ctas_per_tile == chosen.smem_bytes == 0
            continue
        assert chosen.smem_bytes <= limits.smem_bytes, problem
        whole = 8 if chosen.transport == "mesh" else 1  # CTAs that there are only together
        assert (chosen.ctas_per_tile - whole) * chosen.units < H <= chosen.ctas_per_tile * chosen.units, problem
        assert (chosen.tiles - 1) * chosen.batch_rows < B <= chosen.tiles * chosen.batch_rows, problem
        if chosen.transport == "local":
            assert chosen.ctas_per_tile == 1, problem
        if chosen.transport == "cluster":
            assert 2 <= chosen.ctas_per_tile <= 16 and limits.compute_capability >= 90, problem
        if chosen.transport == "grid":
            assert chosen.ctas_per_tile * chosen.tiles * directions <= limits.sm_count, problem
        if chosen.transport == "mesh":
            clusters = chosen.ctas_per_tile / 8 * chosen.tiles * directions
            assert clusters == int(clusters) <= limits.max_clusters_of_8, problem
        shapes = core.kernel_shapes(cell=cell, dtype=dtype, backward=backward)
        vector = 16 // ELEMENT_BYTES[chosen.arithmetic]
        k = (gates if backward else 1) * -(-H // vector) * vector
        assert any(s[:3] == (chosen.transport, chosen.units, chosen.batch_rows) and s[3] >= k for s in shapes), problem


def test_more_work_never_takes_less_time():
    for dtype, H in itertools.product(("bfloat16", "float32"), (64, 256, 1024)):
        times = [plan(H=H, B=B, dtype=dtype).microseconds for B in (1, 8, 16, 64, 256, 1024)]
        assert times == sorted(times), (dtype, H, times)
        times = [plan(H=H, T=T, dtype=dtype).microseconds for T in (1, 2, 16, 512, 100_000)]
        assert times == sorted(times), (dtype, H, times)


@pytest.mark.parametrize(
    ("request_", "problem", "reason"),
    [
        ("local", {"H": 200, "dtype": "bfloat16"}, "local: expected at most 128 of K on the chip, got 200"),
        ("cluster", {"device": "A100"}, "cluster: expected sm_90 or later, got sm_80"),
        (
            "cluster",
            {"device": "RTX 5090", "dtype": "bfloat16"},
            "cluster: expected at most 101376 bytes of shared memory, got",
        ),
        ("cluster", {"H": 8}, "expected at least 2 CTAs of 64 units, got 1"),
        ("grid", {"T": 1}, "grid: expected at least 2 time steps, got 1"),
        ("grid", {"H": 1024, "B": 512, "dtype": "bfloat16"}, "grid: expected at most 132 CTAs, one per SM, got"),
        ("grid", {"device": "T4", "dtype": "bfloat16"}, "expected sm_80 or later, got sm_75"),
        ("grid", {"dtype": "float64"}, "expected a 16-bit or 32-bit dtype, got float64"),
        ("local", {"proj_size": 3, "H": 200, "dtype": "bfloat16"}, "expected at most 128 of K on the chip, got 200"),
        ("bulk", {"dtype": "float32"}, "bulk: expected a kernel of this cell, pass and arithmetic, got none compiled"),
        ("bulk", {"device": "A100", "dtype": "bfloat16"}, "bulk: expected sm_90 or later, got sm_80"),
        ("bulk", {"H": 513, "dtype": "bfloat16"}, "bulk: expected at most 512 of K on the chip, got 520"),
        ("mesh", {"dtype": "bfloat16"}, "mesh: expected a kernel of this cell, pass and arithmetic, got none compiled"),
        ("mesh", LARGE | {"cell": "gru"}, "mesh: expected a kernel of this cell, pass and arithmetic, got none"),
        ("mesh", LARGE | {"B": 65}, "mesh: expected at most 16 clusters of 8 CTAs, which run at once, got 24"),
        ("mesh", LARGE | {"directions": 2}, "mesh: expected at most 16 clusters of 8 CTAs, which run at once, got 32"),
        (
            "mesh",
            LARGE | {"B": 65, "dtype": "float32"},
            "mesh: expected at most 16 clusters of 8 CTAs, which run at once, got 48",
        ),
        ("mesh", LARGE | {"H": 1025}, "mesh: expected at most 4096 of K on the chip, got 4128"),
        ("mesh", {"H": 1025}, "mesh: expected at most 1024 of K on the chip, got 1028"),
        ("mesh", {"allow_tf32": False}, "mesh: expected a kernel of this cell, pass and arithmetic, got none compiled"),
        ("mesh", LARGE | {"T": 1}, "mesh: expected at least 2 time steps, got 1"),
        ("mesh", LARGE | {"device": "A100"}, "mesh: expected sm_90 or later, got sm_80"),
        (
            "mesh",
            LARGE | {"device": "RTX 5090", "dtype": "float32"},
            "mesh: expected at most 101376 bytes of shared memory, got 102528",
        ),
        ("grid:24x8", {}, "expected a shape of 24 units x 8 rows, got none compiled"),
        ("grid:8x8", {"cell": "gru"}, "expected a shape of 8 units x 8 rows, got none compiled"),
        ("grid:8x16", {"dtype": "bfloat16"}, "expected a shape of 8 units x 16 rows, got none compiled"),
        ("grid:8x32", {"allow_tf32": False}, "expected a shape of 8 units x 32 rows, got none compiled"),
        (
            "local",
            {"cell": "gru", "H": 100, "allow_tf32": False},
            "local: expected at most 64 of K on the chip, got 100",
        ),
        ("grid:16x8x7", {}, "expected a shape of 16 units x 8 rows x 7 of K, got none compiled"),
    ],
)
def test_forced_plan_that_does_not_fit(request_, problem, reason):
    with pytest.raises(ValueError, match=f"FUSEDLSTM_PLAN={request_} does not fit: .*{reason}"):
        plan(request=request_, **problem)


def test_code_of_an_older_device():
    """As a driver makes it of PTX: what was compiled to nothing there is not chosen, and the reason names the code."""
    (device,) = (known for known in core.known_devices() if known.name == "H200")
    problem = {"device": device, "T": 512, "B": 16, "H": 256}
    assert core.plan(**problem, dtype="bfloat16").transport == "cluster"
    device.code_capability = 80
    assert core.plan(**problem, dtype="bfloat16").transport == "grid"
    with pytest.raises(ValueError, match="cluster: expected sm_90 or later, got sm_80"):
        core.plan(**problem, dtype="bfloat16", request="cluster")
    with pytest.raises(ValueError, match="expected at most 166912 bytes of shared memory, got 184960"):
        core.plan(**problem | {"H": 1024}, dtype="bfloat16", request="grid:16x16x1536")
    device.code_capability = 75
    assert core.plan(**problem, dtype="bfloat16").transport == "stream"
    with pytest.raises(ValueError, match="expected at most 65536 bytes of shared memory, got"):
        core.plan(**problem | {"H": 512}, dtype="float16", request="grid:16x16x512")


@pytest.mark.parametrize(
    "request_",
    ["fast", "grid:", "grid:8", "grid:8x8x", "grid:8x8x0", "grid:8x8x64x1", "grid:0x8", "stream:8x8", "local,grid"],
)
def test_unknown_request(request_):
    with pytest.raises(ValueError, match=f"expected stream, local, cluster, grid, mesh or bulk.*got '{request_}'"):
        plan(request=request_)


@pytest.mark.parametrize("transport", ["stream", *RESIDENT])
def test_forced_plan(transport):
    forced = plan(request=transport, H=64, dtype="bfloat16")
    assert forced.transport == transport
    assert plan(H=64, dtype="bfloat16").microseconds <= forced.microseconds


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_members_side_by_side(backward):
    """Members run on SMs that one would leave idle; where all SMs must run one member at once, one after another."""
    options = {"H": 64, "B": 8, "T": 1000, "dtype": "bfloat16", "backward": backward}
    assert plan(members=100, **options).transport == "local"
    for transport, members in (("local", 100), ("cluster", 10), ("grid", 10)):
        one, many = (plan(members=n, request=transport, **options) for n in (1, members))
        assert many.microseconds < 2 * one.microseconds and many.members == members
    if backward:
        one, few = (plan(members=n, request="mesh", **options) for n in (1, 16))
        assert few.microseconds < 2 * one.microseconds and few.members == 16
    for transport in ("stream", "grid", *(["mesh"] if backward else [])):
        one, many = (plan(members=n, request=transport, **options) for n in (1, 100))
        assert many.microseconds == pytest.approx(100 * one.microseconds) and many.members == 1


def test_forced_shape():
    forced = plan(request="grid:16x16", H=500, dtype="bfloat16")
    assert (forced.transport, forced.units, forced.batch_rows) == ("grid", 16, 16)


def test_projection_takes_longer_than_its_recurrence():
    """By the products around it, and no kernel runs several members."""
    for backward in (False, True):
        options = {"H": 100, "T": 64, "B": 8, "dtype": "bfloat16", "request": "local", "backward": backward}
        plain, projected = plan(**options), plan(**options, proj_size=50)
        assert plain.microseconds + 10 < projected.microseconds < plain.microseconds + 100
        many = plan(**options, proj_size=50, members=3)
        assert many.members == 1 and many.microseconds == pytest.approx(3 * projected.microseconds)
        assert ", by the weight W_hh W_hr, " in str(projected) and "W_hr" not in str(plain)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_bulk_only_where_it_is_asked_for(backward):
    for H, B in itertools.product((300, 512), (1, 8, 64)):
        options = {"H": H, "B": B, "dtype": "bfloat16", "backward": backward}
        assert plan(**options).transport != "bulk"
        forced = plan(request="bulk:32x8", **options)
        assert str(forced).startswith(f"lstm bulk bfloat16, {-(-H // 32)} CTAs x 32 units, {-(-B // 8)} tiles of 8 ")


@pytest.mark.parametrize("transport", ["cluster", "bulk", "grid", "mesh"])
def test_no_two_ctas_that_wait_for_each_other_on_one_sm(transport):
    """However few registers they have: an SM has at most 1 KiB more shared memory than a CTA, which each CTA takes."""
    for device, backward in itertools.product(DEVICES, (False, True)):
        try:
            chosen = plan(device, H=200, B=8, dtype="bfloat16", request=transport, backward=backward)
        except ValueError:
            continue
        most = DEVICES[device].smem_bytes
        assert chosen.smem_bytes <= most and 2 * (chosen.smem_bytes + 1024) > most + 1024, device
    assert plan(H=64, dtype="bfloat16").smem_bytes < 50_000  # LOCAL waits for nobody


def test_says_what_it_is():
    assert str(plan(H=64, dtype="bfloat16")).startswith("lstm local bfloat16, 1 CTAs x 64 units, 2 tiles of 8 rows, ")
    nothing_fits = plan(H=4096, dtype="bfloat16")
    expected = "lstm stream bfloat16, one product and one pointwise kernel per step, estimated "
    assert str(nothing_fits).startswith(expected)
    projected = str(plan(H=4096, dtype="bfloat16", proj_size=7))
    assert "two products and two pointwise kernels per step" in projected and "W_hr" not in projected
    assert [reason.split(":")[0] for reason in nothing_fits.rejected] == [*RESIDENT, "mesh"]


@pytest.mark.parametrize(
    "wrong", [{"T": 0}, {"B": -1}, {"H": 0}, {"members": 0}, {"directions": 3}, {"proj_size": -1}], ids=str
)
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match="expected T, B, H, members >= 1"):
        plan(**wrong)


def test_wrong_cell():
    with pytest.raises(ValueError, match="expected one of lstm, gru, rnn_tanh, rnn_relu, got 'elman'"):
        plan(cell="elman")


def test_wrong_dtype():
    with pytest.raises(ValueError, match="expected float32, float64, bfloat16 or float16, got 'int8'"):
        plan(dtype="int8")
