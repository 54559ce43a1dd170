"""Compiling CUDA source at run time and launching it on torch's current stream."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class CudaFunction:
    """A compiled kernel on one device."""

    handle: Any
    device_index: int
    shared_bytes: int

    def launch(self, blocks: tuple[int, int], threads: int, arguments: bytes, offsets: tuple[int, ...]) -> None:
        """Launch on torch's current stream of the device; the arguments lie at `offsets` in one run of bytes.

        The driver copies the arguments before it returns. Raises RuntimeError when it refuses.
        """
        from cuda.bindings import driver

        buffer = ctypes.create_string_buffer(arguments, len(arguments))
        at = ctypes.addressof(buffer)
        places = ctypes.create_string_buffer(struct.pack(f"{len(offsets)}P", *(at + offset for offset in offsets)))
        stream = torch.cuda.current_stream(self.device_index).cuda_stream
        x, y = blocks
        shape = (x, y, 1, threads, 1, 1, self.shared_bytes)
        if torch.cuda.current_device() == self.device_index:
            (status,) = driver.cuLaunchKernel(self.handle, *shape, stream, ctypes.addressof(places), 0)
        else:  # the driver launches in the current device's context
            with torch.cuda.device(self.device_index):
                (status,) = driver.cuLaunchKernel(self.handle, *shape, stream, ctypes.addressof(places), 0)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"launching a kernel: {status}")


@dataclass(frozen=True)
class CudaProgram:
    """A compiled source, loaded on one device."""

    module: Any
    device_index: int
    multiprocessors: int

    def function(self, name: str, shared_bytes: int = 0) -> CudaFunction:
        """A kernel of the program with `shared_bytes` of dynamic shared memory a block. Raises RuntimeError."""
        from cuda.bindings import driver

        handle = _ok(driver, driver.cuModuleGetFunction(self.module, name.encode()))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _ok(driver, driver.cuFuncSetAttribute(handle, attribute, shared_bytes))
        return CudaFunction(handle, self.device_index, shared_bytes)


def compile_program(source: str, name: str, device_index: int, constants: Mapping[str, int]) -> CudaProgram:
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
    except (OSError, TypeError) as error:
        raise RuntimeError(f"compiling {name}: {error}") from None
    return CudaProgram(module, device_index, properties.multi_processor_count)


def _ok(library: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a cuda-bindings answer, whose first entry is a status (0 for success)."""
    status, *values = answer
    if int(status) != 0:
        raise RuntimeError(f"{library.__name__}: {status}")
    return values[0] if values else None
