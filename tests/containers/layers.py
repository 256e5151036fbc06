"""Says what each layer of an image changes: layers.py oci ARCHIVE | diff FILE

The layers of an OCI archive are applied one after the other to a tree in memory; printed is what is another after it than
before. What a layer repeats without a change, as native overlay does with every directory that it had to copy up and with
the other names of a linked file, is left out; `repeated` counts files among it, which make a layer larger for nothing.
"""
import gzip, hashlib, io, json, posixpath, sys, tarfile

def hides(tree, path):
    for known in [known for known in tree if known == path or known.startswith(path + '/')]:
        del tree[known]

def meta(entry, data):
    xattrs = sorted((key, value) for key, value in entry.pax_headers.items()
                    if key.startswith('SCHILY.xattr.') and not key.startswith('SCHILY.xattr.user.overlay.'))
    kind = entry.type.decode()
    # What was made just now is made at another time in another run. Engines that compare mounts take no notice of the time
    # of a directory.
    when = '-' if kind == '5' else int(entry.mtime) if entry.mtime < 1600000000 else 'now'
    content = hashlib.sha256(data).hexdigest()[:12] if data is not None else entry.linkname
    return (kind, oct(entry.mode & 0o7777), entry.uid, entry.gid, when, content, entry.devmajor, entry.devminor, xattrs)

def apply(tree, blob):
    before, repeated, links = dict(tree), [], []
    archive = tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob) if blob[:2] == b'\x1f\x8b' else blob))
    for entry in archive:
        path = posixpath.normpath(entry.name).lstrip('/')
        directory, name = posixpath.split(path)
        if name == '.wh..wh..opq':
            for known in [known for known in tree if known.startswith(directory + '/')]:
                del tree[known]
        elif name.startswith('.wh.'):
            hides(tree, posixpath.join(directory, name[4:]))
        else:
            if entry.islnk():
                target = posixpath.normpath(entry.linkname).lstrip('/')
                new = tree[target]
                if before.get(target) != new:
                    links.append((path, target))
            else:
                new = meta(entry, archive.extractfile(entry).read() if entry.isreg() else None)
            if new[0] != '5' and before.get(path) == new:
                repeated.append(path)
            if new[0] != '5':
                hides(tree, path)
            tree[path] = new
    for path in sorted(before.keys() | tree.keys()):
        if path not in tree:
            if posixpath.dirname(path) in tree or posixpath.dirname(path) == '':
                print('  D', path)
        elif before.get(path) != tree[path]:
            print('  C' if path in before else '  A', path, *tree[path])
    for path, target in sorted(links):
        print('  L', *sorted((path, target)))
    return repeated

def oci(file):
    archive = tarfile.open(file)
    blob = lambda digest: archive.extractfile('blobs/' + digest.replace(':', '/')).read()
    index = json.load(archive.extractfile('index.json'))
    tree, repeated = {}, 0
    for number, layer in enumerate(json.loads(blob(index['manifests'][0]['digest']))['layers']):
        print('layer', number)
        repeated += len(apply(tree, blob(layer['digest'])))
    print('repeated', repeated)

def diff(file):
    """The lines of `podman diff`, without directories that are named only for what is in them."""
    lines = sorted(line.rstrip('\n') for line in open(file))
    for line in lines:
        if not (line.startswith('C ') and any(other[2:].startswith(line[2:] + '/') for other in lines)):
            print(line)

{'oci': oci, 'diff': diff}[sys.argv[1]](sys.argv[2])
