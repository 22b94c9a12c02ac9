def survey(text: bytes) -> tuple[int, bool]:
    """How deep lists and objects stand in each other in valid JSON, and whether it is written plainly: without space
    around signs, escapes that need not be (`\\u` and `\\/`), exponents, and numbers of more than 18 digits.

    What is not UTF-8 makes no difference to it, nor does anything that is no JSON do harm. About a nanosecond a byte.
    """
