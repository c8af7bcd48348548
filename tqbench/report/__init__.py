"""Records to tables, figures, pages and verdicts. Pure functions: data to data, and data to text."""
