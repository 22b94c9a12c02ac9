"""The ledger's stored form, and how changes are taken for it: one change row and a few whole parts per flush.

All numbers are little endian. A *blob* is a head of 28 bytes, a body, and the CRC-32 (zlib's) of both in 4 bytes:

    magic "pLdg" | version u8 = 1 | kind u8 | part u8 | columns u8 | number i64 | upto i64 | count u32

    table   key                  kind         number              body
    block   number << 5 | part   0 chunk      seq // 4096         base_ms i64, created_low u32[], created_high u8[], labels u32[],
            | kind << 3                                           states u8[]: of the notices number * 4096, + 1, ...
                                 1 dense      seq of the notice   part 0: states u8[]; position is the user's number
                                 2 page       of the page         part 0: notices u32[] (low bits of seq), users u32[], states u8[]
    change  the flush            3            the flush           entries

`count` is the length of each column; 0 in a change row. A notice was accepted at base_ms + created_high << 32 + created_low;
state 0 is a gap. Parts 1-3 of a dense block or page are its times (received, read, confirmed), part 4 its clients, each u32[] and
perhaps shorter than part 0: what is missing is 0. `columns` of part 0 has bit n where there is a part n (others are left over from
an earlier block of that number); it is 0 in other parts. States, times and labels are as in `_ledger.pxd`.

Of notices behind the last stored chunk the row in `notice` says acceptance and label, and the state is KNOWN until the log says
otherwise. All else is in the log: change rows, in order of their flush. `upto` of part 0 is the flush that stored the block last;
entries about it of that flush and earlier are in its parts. `v` is an unsigned LEB128. An entry is one of

    1 NOTICES   v chunk, v n, n x (v gap, state u8)                        gap: places left out since the one before, + 0
    2 ROWS      v page, v first, v n, columns u8, notices u32[n], users u32[n], states u8[n], u32[n] for each bit of columns
                                                                           rows of a page from position `first` on
    3 CHANGES   kind u8, v number, v n, n x (v gap, state u8, columns u8, v for each bit of columns)
                                                                           positions as they are now; columns left out are 0
    4 DROPPED   kind u8, v number                                          the block is gone; a page's number may come again

Everything is an absolute value: a row may be replayed twice. Parts that a flush stores, and its change row, are written in one
transaction. Rows below the flush that `take_changes` returns say nothing that is not in parts as well, and are deleted in it.
"""
