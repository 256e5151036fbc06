//! The thin FUSE adapter: the only importer of fuser.
