"""Lock a file or a folder against other processes, on file systems that have locks."""

import errno
import fcntl

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What flock(2) gives on Lustre without ``-o flock``, on some FUSE file systems and on old NFS."""


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, or its process ends.

    Returns:
        False if its file system has no locks; it is not locked then.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: Any other failure.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno == errno.EACCES:  # As NFS says that it is locked.
            raise BlockingIOError(error.errno, error.strerror) from error
        raise
    return True
