"""A Diagnosis becomes a string: terminal, HTML, Markdown, CSV. Nothing here prints, opens files or imports torch."""
