# cython: cdivision=True
"""What a look at JSON tells without parsing it. See _json.pyi."""

cimport cython
from libc.stdint cimport uint8_t

cdef enum:
    MOST_DIGITS = 18  # a whole number of so many fits into 64 bits, whatever they are


@cython.boundscheck(False)
@cython.wraparound(False)
def survey(bytes text not None):
    cdef const uint8_t* at = text
    cdef Py_ssize_t size = len(text), i = 0
    cdef int depth = 0, deepest = 0, digits = 0
    cdef bint is_plain = True, is_text = False
    cdef uint8_t sign
    while i < size:
        sign = at[i]
        i += 1
        if is_text:
            if sign == c'"':
                is_text = False
            elif sign == c'\\':
                if i < size and (at[i] == c'u' or at[i] == c'/'):
                    is_plain = False
                i += 1
        elif c'0' <= sign <= c'9':
            digits += 1
            is_plain &= digits <= MOST_DIGITS
        else:
            if sign == c'"':
                is_text = True
            elif sign == c'{' or sign == c'[':
                depth += 1
                deepest = max(deepest, depth)
            elif sign == c'}' or sign == c']':
                depth -= 1
            elif sign == c' ' or sign == c'\n' or sign == c'\r' or sign == c'\t' or digits and (sign | 32) == c'e':
                is_plain = False
            digits = 0
    return deepest, is_plain
