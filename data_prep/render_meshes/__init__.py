"""Rendering with Blender, which lives in an environment and a process of its own."""
