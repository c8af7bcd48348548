"""Where weights come from: a packaged alias, a directory, a GGUF file or a hub id, resolved to checked local files."""
