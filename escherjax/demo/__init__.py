"""The web page: generate views of one's own pictures in a browser.

`session` (one visitor's pictures, cameras and path) and `jobs` (the queue of requests) know nothing
of the page; `page`, `panels` and `scene_view` show them through viser, `guard` closes what viser
leaves open.
"""
