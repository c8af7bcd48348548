"""Operations with several implementations. Each folder holds the op record, the reference, and the fast forms beside it."""
