"""The web page of `escherjax.demo`.

`session` (one visitor's pictures, cameras and path), `jobs` (who draws when), `drawing`, `preview`
and `downloads` know nothing of the page; `page` and `scene_view` show them through viser, `guard`
closes what viser leaves open.
"""
