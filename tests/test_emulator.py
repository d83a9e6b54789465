"""The emulator itself: tiny kernels, right or wrong in one way each, and what the checker says about them."""

import pytest
import torch
from emulator import Memory, module, options

RIGHT = [
    "warp_exchange",
    "reuse_of_shared",
    "neighbours_write_halves",
    "constant_table",
    "sentinel_poll",
    "relaxed_store_then_barrier",
    "message_passing",
    "exchange",
    "bulk_exchange",
    "exchange_no_sync_at_end",  # each CTA has waited for all that is ever sent to it
]

# kernel -> what the message must say, under every schedule
WRONG = {
    "warp_exchange_without_warp_sync": r"race|which nothing has written",
    "shuffle_taken_for_a_fence": r"race|which nothing has written",
    "misaligned_vector": r"misaligned access of 16 bytes by block\(0,0,0\) thread\(\d+\) at selftest.cu:\d+",
    "misaligned_plain": r"not aligned to 8 bytes",
    "past_the_end_of_shared": r"0 bytes past the end of shared memory of block\(0,0,0\)",
    "read_past_the_end": r"read of 4 bytes outside every buffer, 0 bytes past the end of out",
    "write_past_the_end": r"write of 4 bytes outside every buffer, 0 bytes past the end of out",
    "local_array_overrun": r"index \d+ outside 'unsigned int \[8\]'",
    "too_much_stack": r"block\(0,0,0\) thread\(\d+\) takes more stack than the emulator has for it, \d+ bytes",
    "divergent_barrier": r"divergent barrier: .* while \d+ threads wait at block_sync \(selftest.cu:\d+\)",
    "early_return": r"divergent barrier: .* (exits while|have exited)",
    "half_a_warp": r"divergent warp: .* lanes",
    "unwritten_shared": r"read of shared memory of block\(0,0,0\)\+\d+, which nothing has written",
    "unwritten_output": r"read of out\+\d+, which nothing has written",
    "reuse_of_shared_without_barrier": r"race on shared memory of block\(0,0,0\)\+\d+: (read|write) by .*"
    r"; not ordered with (read|write) by .* at selftest.cu:\d+",
    "all_write_one_word": r"race on out\+0: write by .*; not ordered with write",
    "constant_load_of_written_data": r"load_constant of out\+\d+, which this launch has written",
    "plain_read_of_published_data": r"race on out\+\d+",
    "prefetch_past_the_end": r"prefetch outside every buffer, 0 bytes past the end of out",
    "exchange_no_sync_at_start": r"race on shared memory|without an initialised mbarrier|has not started",
    "exchange_no_init_fence": r"store_async to an mbarrier without mbarrier_init_fence",
    "exchange_wrong_parity": r"race|before what is sent to it has landed|which nothing has written",
    "exchange_no_wait": r"race|before what is sent to it has landed|which nothing has written",
    "exchange_wait_within_block": r"race on shared memory.*; not ordered with write by asynchronous access of",
    "exchange_too_few_bytes": r"race|before what is sent to it has landed|which nothing has written",
    "exchange_too_many_bytes": r"deadlock\n(.*\n)*  waiting at mbarrier_try_wait",
    "exchange_single_buffer": r"race on shared memory|before what is sent to it has landed",
    "bulk_exchange_no_fence": r"race of a bulk_copy on .*block\(\d,0,0\).*without a bulk_copy_fence after it",
    "bulk_exchange_fence_before_stores": r"race of a bulk_copy on .*without a bulk_copy_fence after it",
    "bulk_exchange_fence_of_copier": r"race of a bulk_copy on .*without a bulk_copy_fence after it",
    "bulk_exchange_no_fence_of_peer": r"race of a bulk_copy on .*without a bulk_copy_fence after it",
    "bulk_exchange_no_sync": r"race on shared memory|which nothing has written",
    "bulk_exchange_source_overwritten": r"race on .*: write by .*; not ordered with read by asynchronous access of",
    "bulk_exchange_source_unwritten": r"which nothing has written",
    "bulk_exchange_too_few_bytes": r"deadlock\n(.*\n)*  waiting at mbarrier_try_wait",
    "bulk_exchange_too_many_bytes": r"deadlock\n(.*\n)*  waiting at mbarrier_try_wait",
    "bulk_exchange_peer_left_out": r"deadlock\n(.*\n)*  waiting at mbarrier_try_wait",
    "bulk_exchange_misaligned": r"misaligned bulk_copy of 128 bytes",
    "bulk_exchange_source_of_peer": r"bulk_copy from outside the CTA's own shared memory",
    "send_and_exit": r"is not ordered before the exit",
    "send_and_exit_without_sync": r"is not ordered before the exit|that has exited",
    "divergent_cluster_exit": r"deadlock\n(.*\n)*  waiting at cluster_sync",
    "too_many_ctas": r"launch refused: a cooperative grid of 1000 CTAs cannot be co-resident on 132 SMs",
    "too_much_shared_memory": r"launch refused: 1048576 bytes of shared memory, limit 232448",
}


def run(kernel, seed=0, preempt=0.0):
    """Runs a kernel of selftest.cu on a buffer of 1024 words, all ones. Returns the buffer."""
    out = torch.full((1024,), -1, dtype=torch.int32)
    with Memory() as memory, options(memory.module, seed=seed, preempt=preempt):
        memory.module.run_selftest(kernel, memory.pointer(out, "out", initialised=kernel != "unwritten_output"))
    return out


@pytest.mark.parametrize("preempt", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernel_passes(kernel, seed, preempt):
    run(kernel, seed, preempt)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kernel", WRONG)
def test_wrong_kernel_is_reported(kernel, seed):
    with pytest.raises(module().EmulationError, match=WRONG[kernel]):
        run(kernel, seed)


def test_error_names_the_kernel_and_the_schedule():
    with pytest.raises(module().EmulationError, match=r"^\S*unwritten_shared: .*\[schedule seed 3\]$"):
        run("unwritten_shared", seed=3)


def test_wait_for_a_cta_that_is_not_resident_is_a_livelock():
    run("sentinel_poll_without_residency", seed=0)  # the publisher happens to run first
    with pytest.raises(module().EmulationError, match=r"livelock.*\n(.*\n)*  polling memory \(selftest.cu:\d+\)"):
        run("sentinel_poll_without_residency", seed=1)


def test_vectors_are_published_word_by_word():
    """A poll that looks at one word of four sees the others late under some schedule; the full poll never does."""
    expected = (torch.arange(32)[:, None] + torch.arange(4)).flatten().int()
    assert all(torch.equal(run("sentinel_poll", seed)[:128], expected) for seed in range(8))
    torn = [run("sentinel_poll_of_one_word", seed)[:128] for seed in range(8)]
    assert any((t == -1).any() for t in torn)


def test_relaxed_stores_are_seen_late_but_never_after_a_barrier():
    lanes = torch.arange(64, dtype=torch.int32)
    for seed in range(4):
        assert torch.equal(run("relaxed_store_then_barrier", seed)[256:320], lanes ^ 32)
    assert (run("relaxed_store_without_barrier")[256:288] == -1).any()


@pytest.mark.parametrize("fence", ["release", "acquire"])
def test_relaxed_stores_are_ordered_by_a_fence_on_either_side(fence):
    read = [run("message_passing", seed)[256:288] for seed in range(8)]
    assert all((r == 2).all() for r in read)
    stale = [run(f"message_passing_without_{fence}", seed)[256:288] for seed in range(8)]
    assert (stale[1] == 1).all(), "what overwrites lands last"
    assert any((r != 2).any() for r in stale[2:])


def test_exchange_through_distributed_shared_memory_delivers():
    out = run("exchange", seed=2)[:64].reshape(2, 16, 2)
    sent = torch.arange(16, dtype=torch.int32)
    for rank in range(2):
        assert torch.equal(out[rank, :, 0], 2 * (100 * rank + sent))  # two rounds
        assert torch.equal(out[rank, :, 1], torch.full_like(sent, 0 + 1))


def test_bulk_copy_delivers():
    for seed in range(4):
        out = run("bulk_exchange", seed)[:64].reshape(2, 32)
        assert torch.equal(out, 100 * torch.arange(2)[:, None].int() + torch.arange(32).int())


def test_runtime_is_usable_after_an_error():
    with pytest.raises(module().EmulationError):
        run("early_return")
    assert torch.equal(run("constant_table")[:4], torch.tensor([7, 8, 9, 10], dtype=torch.int32))
