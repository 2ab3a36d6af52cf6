# SPDX-License-Identifier: Apache-2.0
"""The C++ entry of a CPU kernel: it spreads the tiles of all batches and heads over the threads of the process.

Arguments name memory by number, so that they stay the same from call to call and only the addresses are new. Every
library also runs sequences of entries, its own and others, because one call from Python takes less than many.

Built by g++, it uses the OpenMP runtime that torch has loaded, so there is one pool of threads; clang++ brings its own.
There are no more threads than tasks. Every task writes what no other task writes, so their number changes no bit of a
result.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from llsa_gen.codegen.views import Parameter

_KINDS = {
    "handle": ("void*", "Tensor", "4q"),
    "int32": ("int32_t", "int32_t", "i"),
    "float32": ("float", "float", "f"),
}
"""A parameter's type in the kernel, its type among the arguments of the entry, and the layout of that for `struct`."""

_TEXT = """\
#include <cstdint>

extern "C" int32_t {kernel}({prototype});

namespace {{
struct Tensor {{
  int64_t memory;  // which one it lies in
  int64_t offset;  // bytes before its first batch entry and head there
  int64_t entry;   // bytes from one batch entry to the next
  int64_t head;    // bytes from one head to the next
}};

struct Arguments {{
{members}
}};

inline char* at(const Tensor& tensor, int64_t entry, int64_t head, char* const* memory) {{
  return memory[tensor.memory] + tensor.offset + entry * tensor.entry + head * tensor.head;
}}
}}  // namespace

extern "C" void call(int32_t threads, const void* given, char* const* memory) {{
  const Arguments& a = *static_cast<const Arguments*>(given);
{names}
  const int64_t tasks = {tasks}, all = batch * heads * tasks;
  const int crew = static_cast<int>(all < threads ? (all > 1 ? all : 1) : threads);  // one alone wakes nobody
  const int64_t fair = all / (16 * crew);  // with 16 runs for every thread none ends long after the others
  const int64_t run = fair < 1 ? 1 : fair < 8 ? fair : 8;  // neighbours, which read much of the same rows
#pragma omp parallel for schedule(dynamic, run) num_threads(crew)
  for (int64_t number = 0; number < all; ++number) {{
    const int64_t entry = number / tasks / heads, head = number / tasks % heads;
    {kernel}({passed});
  }}
}}

"""

SEQUENCE = """
namespace {
struct Call {
  void (*entry)(int32_t threads, const void* given, char* const* memory);
  const void* given;
};
}  // namespace

extern "C" void call_all(int32_t threads, const Call* calls, int64_t count, char* const* memory) {
  for (int64_t number = 0; number < count; ++number) calls[number].entry(threads, calls[number].given, memory);
}
"""
"""What runs calls of entries in order: a part of every library."""


def entry_text(kernel: str, parameters: Sequence[Parameter], tasks: str) -> str:
    """The text of the entry ``call`` of a kernel, and of ``call_all``, which runs any entries in order.

    Args:
        kernel: The C name of the function that computes one task; it takes the parameters and the task's number.
        parameters: Of the kernel: pointers first, then int32, then float32, which is the layout of its arguments.
        tasks: Tasks of a head, a C expression over the int32 parameters.
    """
    passed = [f"at(a.{p.name}, entry, head, memory)" if p.type == "handle" else f"a.{p.name}" for p in parameters]
    ints = [p.name for p in parameters if p.type == "int32"]
    text = _TEXT.format(
        kernel=kernel,
        prototype=", ".join([*(_KINDS[p.type][0] for p in parameters), "int32_t"]),
        members="\n".join(f"  {_KINDS[p.type][1]} {p.name};" for p in parameters),
        names="\n".join(f"  [[maybe_unused]] const int64_t {name} = a.{name};" for name in ints),
        tasks=tasks,
        passed=", ".join([*passed, "static_cast<int32_t>(number % tasks)"]),
    )
    return text + SEQUENCE


def layout_of(parameters: Sequence[Parameter]) -> struct.Struct:
    """How the arguments of the entry are packed: for a pointer memory, offset, and bytes per batch entry and head."""
    return struct.Struct("=" + "".join(_KINDS[p.type][2] for p in parameters))
