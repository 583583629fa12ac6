"""Making SE-ready images, making them one's own, and looking at them: on a workstation or a build machine."""
