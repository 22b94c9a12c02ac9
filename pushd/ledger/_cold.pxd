# What is in the file of cold blocks. `read` gives the body of a part by its key, None where there is none; a part is read
# in the thread of whoever asks, as scratch.

from libc.stdint cimport int64_t, uint32_t

from pushd.ledger._ledger cimport Block

# So many positions, to be freed. The block may not be freed meanwhile: between `enter` and `leave`
cdef uint32_t* read_column(Block* block, int part, uint32_t count, object read) except NULL
cdef object patched_part(Block* block, int part, int64_t flush)  # None: nothing of it has changed
