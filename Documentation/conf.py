# SPDX-License-Identifier: GPL-2.0
# For make htmldocs. In a kernel tree, the kernel's own is used instead.

project = "pagekit"
copyright = "The pagekit authors"
root_doc = "index"
html_theme = "alabaster"
html_theme_options = {"description": "Helpers for dma-buf drivers", "page_width": "1100px", "sidebar_width": "200px"}
html_show_sourcelink = False
highlight_language = "none"
