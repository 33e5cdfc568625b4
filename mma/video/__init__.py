"""Videos in, face crops out: stranger's files are decoded in a child process that may be killed.

The way of a file: `container.sniff` lets known containers pass, `index` reads the stamps of all its frames,
`readers` gives the frames, `child` follows the face in them, and `slot` is what a caller holds.
Nothing here imports torch: the child must start quickly and stay small.
"""
