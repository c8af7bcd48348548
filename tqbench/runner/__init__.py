"""Cells to records: a worker process per model, typed outcomes, atomic records, resume."""
