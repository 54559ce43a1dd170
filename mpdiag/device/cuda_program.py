"""Compiling CUDA source at run time and launching it on torch's current stream."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class CudaFunction:
    """A compiled kernel on one device."""

    handle: Any
    device_index: int
    multiprocessors: int

    def launch(self, blocks: int, threads: int, arguments: Sequence[Any]) -> None:
        """Launch on torch's current stream of the device; arguments are ctypes values or buffers, passed by value.

        Raises RuntimeError when the driver refuses.
        """
        from cuda.bindings import driver

        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        stream = torch.cuda.current_stream(self.device_index).cuda_stream
        (status,) = driver.cuLaunchKernel(
            self.handle, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(places), 0
        )
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"launching a kernel: {status}")


def compile_function(source: str, name: str, device_index: int, constants: Mapping[str, int]) -> CudaFunction:
    """Compile with NVRTC for the device's own architecture, `constants` as macros, and load it.

    Raises RuntimeError with the reason: no cuda-bindings, no NVRTC, a source that does not compile.
    """
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError as error:
        raise RuntimeError(f"cuda-bindings is not installed: {error}") from None
    properties = torch.cuda.get_device_properties(device_index)
    options = [f"--gpu-architecture=sm_{properties.major}{properties.minor}", "--std=c++17"]
    options += [f"-D{key}={value}" for key, value in constants.items()]
    try:
        program = _ok(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), 0, None, None))
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _ok(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"{name} does not compile: {log.decode(errors='replace').strip()}")
        binary = b" " * _ok(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        _ok(nvrtc, nvrtc.nvrtcGetCUBIN(program, binary))
        with torch.cuda.device(device_index):
            torch.cuda.current_stream().synchronize()  # makes the device's context current on this thread
            module = _ok(driver, driver.cuModuleLoadData(binary))
            handle = _ok(driver, driver.cuModuleGetFunction(module, name.encode()))
    except (OSError, TypeError) as error:
        raise RuntimeError(f"compiling {name}: {error}") from None
    return CudaFunction(handle, device_index, properties.multi_processor_count)


def _ok(library: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a cuda-bindings answer, whose first entry is a status (0 for success)."""
    status, *values = answer
    if int(status) != 0:
        raise RuntimeError(f"{library.__name__}: {status}")
    return values[0] if values else None
