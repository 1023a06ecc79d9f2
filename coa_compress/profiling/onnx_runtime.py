"""ONNX Runtime as a second engine: an exported network that is timed beside torch."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.errors import ModelError

_INSTALL = "pip install 'coa-compress[onnx]'"


def check_onnx_runtime(device: torch.device) -> None:
    """Raise unless ONNX Runtime can run on a device.

    Args:
        device: ``cpu`` or a GPU.

    Raises:
        ModelError: If it is not installed, or was built without that kind of device.
    """
    if find_spec("onnxruntime") is None:
        message = f"onnxruntime is not installed, which --engine onnxruntime needs: {_INSTALL}"
        raise ModelError(message)
    import onnxruntime

    if _provider(device) not in onnxruntime.get_available_providers():
        message = (
            f"this onnxruntime was built without {_provider(device)}: use --device cpu, "
            f"or pip install onnxruntime-gpu"
        )
        raise ModelError(message)


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, run by ONNX Runtime on one input that lies on the device.

    Args:
        file: The file; its input is called ``input``.
        example: The input of every pass.
        threads: CPU threads inside an operation; None for as many as torch uses.

    Raises:
        ModelError: If ONNX Runtime cannot run on the device of the example.
    """

    def __init__(self, file: Path, example: Tensor, *, threads: int | None = None) -> None:
        super().__init__()
        device = example.device
        check_onnx_runtime(device)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        # threads that spin after a pass would take the processor from the next pass of torch
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider: Any = (_provider(device), {"device_id": device.index or 0})
        if device.type == "cpu":
            provider = _provider(device)
        self._session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
        self._binding = self._session.io_binding()
        given = onnxruntime.OrtValue.ortvalue_from_numpy(
            example.detach().cpu().contiguous().numpy(), device.type, device.index or 0
        )
        self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, given)
        self._binding.bind_output(
            self._session.get_outputs()[0].name, device.type, device.index or 0
        )

    def forward(self, given: Tensor) -> None:
        """Run one pass; ``output`` has the result.

        Args:
            given: Not read: the input was bound when this was made.

        Raises:
            RuntimeError: If ONNX Runtime cannot, such as for want of memory.
        """
        del given
        try:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except _errors_of_onnx_runtime() as error:
            message = f"onnxruntime: {error}"
            raise RuntimeError(message) from None

    def output(self) -> Tensor:
        """Return what the last pass gave, on the CPU."""
        return torch.from_numpy(self._binding.copy_outputs_to_cpu()[0])


def _errors_of_onnx_runtime() -> tuple[type[Exception], ...]:
    """Return what a pass raises: these share no class with what torch raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (state.Fail, state.RuntimeException, state.EPFail, state.NotImplemented)


def _provider(device: torch.device) -> str:
    return "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
