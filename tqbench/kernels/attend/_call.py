"""What the native library is told about a call of attention: the structures of call.hpp."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

from tqbench.kernels.packed import CExact, CPacked


class CallSide(Structure):
    """`AttendSide` of call.hpp."""

    _fields_ = [
        ("sinks", CExact),
        ("tail", CExact),
        ("packed", CPacked),
        ("packed_end", c_int64),
        ("tail_start", c_int64),
        *((name, c_void_p) for name in ("basis", "offset", "bounds")),
    ]


class Call(Structure):
    """`AttendCall` of call.hpp."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "kv_heads", "queries", "head_dim", "start", "reach")),
        ("scale", c_float),
        ("softcap", c_float),
        ("q", c_void_p),
        ("out", c_void_p),
        ("k", CallSide),
        ("v", CallSide),
        ("split", c_int64),
        ("ahead", c_int64),
        ("fast", c_int32),
        ("sparse", c_float),
        ("dropped", c_void_p),
    ]


STRUCTURES = (CallSide, Call)  # that the library is handed
