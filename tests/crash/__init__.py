"""Power cuts: what a disk may hold after one, and whether our stores find in it all they promised.

    make crash-images IMAGES=5000

The real stores of an authority do real work while a file layer of SQLite notes every write and
sync (`recording.py`). From the notes, disks are made as a power cut could have left them at many
moments: what was not synced is lost, kept or torn (`images.py`). Each is opened by the real stores,
and must hold whatever was acknowledged before the cut (`judge.py`).
"""
