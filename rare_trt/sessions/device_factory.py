"""Opening the GPU through the CUDA binding that is installed."""

from __future__ import annotations

from rare_trt.errors import BackendError
from rare_trt.sessions.device import Device


def open_device() -> Device:
    """Opens the first GPU that CUDA lists, through cuda-python or else PyCUDA.

    Raises BackendError where the bindings, the driver or the GPU are missing.
    """
    try:
        from rare_trt.sessions.cuda import CudaDevice
    except ImportError:
        pass
    else:
        return CudaDevice()
    try:
        from rare_trt.sessions.pycuda import PyCudaDevice
    except ImportError as error:
        raise BackendError(
            f"no CUDA bindings for Python can be loaded ({error}): pip install cuda-bindings, of "
            "the CUDA major version that TensorRT was built for (12 on JetPack 6)"
        ) from error
    return PyCudaDevice()
