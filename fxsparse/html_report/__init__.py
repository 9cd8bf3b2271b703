"""What the compiler did and what it costs, as one HTML file that needs nothing else: ``html_page``."""

from .page import html_page, notebook_page, save_page

__all__ = ["html_page", "notebook_page", "save_page"]
