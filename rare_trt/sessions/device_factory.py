"""Opening the GPU through the CUDA binding that is installed."""

from __future__ import annotations

from rare_trt.errors import BackendError
from rare_trt.sessions.device import Device


def open_device() -> Device:
    """Opens the first GPU that CUDA lists, through cuda-python or else PyCUDA.

    Raises BackendError where the bindings, the driver or the GPU are missing.
    """
    faults = []
    try:
        from rare_trt.sessions.cuda import CudaDevice
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        faults.append(f"cuda-bindings cannot be loaded ({error})")
    else:
        return CudaDevice()
    try:
        from rare_trt.sessions.pycuda import PyCudaDevice
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        faults.append(f"PyCUDA cannot be loaded ({error})")
    else:
        return PyCudaDevice()
    if faults:
        raise BackendError(
            f"{'; '.join(faults)}: install NVIDIA's driver where there is an NVIDIA GPU, and the "
            "bindings again where there is a driver"
        )
    raise BackendError(
        "no CUDA bindings for Python are installed: pip install cuda-bindings, of the CUDA major "
        "version that TensorRT was built for (12 on JetPack 6)"
    )
