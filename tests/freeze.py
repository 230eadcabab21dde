"""Provoke PythonMonkey's freeze, unless the JavaScript given as argument prevents it.

The main thread, with Python's global lock, wants SpiderMonkey's helper lock to optimise code. The thread that
has compiled WebAssembly wants, with that lock, Python's. Neither lets go, and Ctrl-C does nothing.
"""
import asyncio
import sys

import pythonmonkey as pm

ROUNDS = 30    # without a remedy it froze in the first one
FUNCTIONS = 400    # enough to be still compiling when the code gets hot


def number(n):
    """Encode a number as WebAssembly does (LEB128), always in three bytes."""
    return bytes([n & 127 | 128, n >> 7 & 127 | 128, n >> 14])


def section(kind, content):
    return bytes([kind]) + number(len(content)) + content


function = b'\0' + b'\x41\1' + b'\x41\2\x6a' * 60 + b'\x0b'    # no locals; 1, then 60 times: 2, add; end
functions = number(FUNCTIONS) + (number(len(function)) + function) * FUNCTIONS
wasm = bytearray(b'\0asm\1\0\0\0' + section(1, b'\1\x60\0\1\x7f')    # one type: () => number
                 + section(3, number(FUNCTIONS) + bytes(FUNCTIONS))    # which all have
                 + section(7, b'\1\3sum\0\0')    # the first one is exported
                 + section(10, functions))
get_hot = pm.eval('''(round) => {
  for (let k = 0; k < 12; k++) {
    const work = new Function('a', `let s = ${round + k}; for (let i = 0; i < 3000; i++) s = s + a * i | 0;`);
    for (let a = 0; a < 60; a++) work(a);
  }
}''')


async def main():
    compute = pm.eval('async (wasm) => (await WebAssembly.instantiate(wasm)).instance.exports.sum()')
    for i in range(ROUNDS):
        computed = compute(wasm)
        get_hot(float(i))
        assert await computed == 1 + 60 * 2


pm.eval(sys.argv[1])
asyncio.run(main())
