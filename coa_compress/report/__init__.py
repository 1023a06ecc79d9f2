"""From a finished run to JSON, Markdown and HTML."""
