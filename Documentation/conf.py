# SPDX-License-Identifier: GPL-2.0
# For make htmldocs. In a kernel tree, the kernel's own is used instead.

project = "pagekit"
copyright = "The pagekit authors"
root_doc = "index"
html_theme = "alabaster"
html_theme_options = {"description": "Helpers for dma-buf drivers", "page_width": "1180px", "sidebar_width": "180px",
                      "body_max_width": "none"}
html_static_path = ["_static"]
html_show_sourcelink = False
highlight_language = "none"
