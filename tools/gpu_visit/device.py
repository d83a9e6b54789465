"""The GPU as the experiments see it. A test's device has the same methods."""

import contextlib

import torch

from fusedlstm import _library


class Cuda:
    """The first GPU. Streams are opaque: new_stream() makes one, on() and is_busy() take it."""

    name = "cuda"
    rounds = 5  # of timed samples
    sample_milliseconds = 10.0  # of work in one of them
    product_size = 4096  # of the matrices that are multiplied beside a layer

    @property
    def ops(self):
        """lstm_layer, lstm_layer_inference and lstm_layer_backward."""
        return torch.ops.fusedlstm

    def describe(self):
        properties = torch.cuda.get_device_properties(0)
        return {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
        }

    def probe(self):
        """One kernel, waited for.

        Raises:
            RuntimeError: the device or this process's context is lost; or there are none of our kernels for it, where
                every measurement would be of PyTorch's own layers.
        """
        if (reason := _library.why_no_kernels(torch.device(self.name, 0))) is not None:
            raise RuntimeError(f"fusedlstm has no kernels here: {reason}")
        if int(torch.ones(1, device=self.name).add(1).item()) != 2:
            raise RuntimeError("expected 1 + 1 = 2 on the device")

    def synchronize(self):
        torch.cuda.synchronize()

    def milliseconds(self, call, repeats):
        """Of the device, for one call of `repeats` in a row."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    def captured(self, call):
        """(what replays the call as a CUDA graph, the tensors that each replay writes)."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries set themselves up outside of the capture
            call()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        return graph.replay, results

    def new_stream(self):
        return torch.cuda.Stream()

    def on(self, stream) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(stream)

    def is_busy(self, stream):
        return not stream.query()
