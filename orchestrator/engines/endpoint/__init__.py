"""Any server that speaks OpenAI's completions API as an engine."""
