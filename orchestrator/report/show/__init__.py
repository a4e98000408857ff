"""What a person sees: live view, tables, pages, figures."""
