"""What a line of /proc/self/mountinfo says of a volume: do locks exclude other nodes, and renames."""

import os
import subprocess
import sys

import pytest

from warmer.errors import VolumeError
from warmer.observe import mount

ROOT = "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw"
NFS = (
    "rw,vers={},rsize=1048576,wsize=1048576,namlen=255,hard,{}proto=tcp,timeo=600,retrans=2,sec=sys"
)


def line(kind, source, options="rw", *, point="/models", own="rw,relatime"):
    return f"436 22 0:58 / {point} {own} shared:201 master:7 - {kind} {source} {options}"


def judged(*lines, path="/models"):
    return mount.judge("\n".join([ROOT, *lines]) + "\n", path)


def nfs(version, more="", *, kind="nfs", local="none", source="10.0.0.7:/export"):
    return line(kind, source, f"{NFS.format(version, more)},local_lock={local},addr=10.0.0.7")


@pytest.mark.parametrize(
    ("text", "locks"),
    [
        (nfs("3"), "shared"),
        (nfs("3", "nolock,", local="all"), "node"),
        (nfs("3", "nolock,"), "node"),
        (nfs("3", local="all"), "node"),
        (nfs("3", local="posix"), "node"),
        (nfs("3", local="flock"), "shared"),  # ours are no flocks
        (nfs("4.0", kind="nfs4"), "shared"),
        (nfs("4.1", kind="nfs4"), "shared"),
        (nfs("4.2", kind="nfs4", local="all"), "shared"),  # which ignores it
        (nfs("4.1", kind="nfs4", source="fs-01ab.efs.eu-west-1.amazonaws.com:/"), "shared"),
        (nfs("4.1", "noresvport,port=20049,", kind="nfs4", source="127.0.0.1:/"), "shared"),
        (line("lustre", "10.0.0.7@tcp:/fsx", "rw,flock,lazystatfs"), "shared"),
        (line("lustre", "10.0.0.7@tcp:/fsx", "rw,localflock,lazystatfs"), "node"),
        (line("lustre", "10.0.0.7@tcp:/fsx", "rw,lazystatfs"), "none"),
        (line("lustre", "10.0.0.7@tcp:/fsx", "rw,noflock"), "none"),
        (line("ceph", "10.0.0.7:6789,10.0.0.8:6789:/v", "rw,name=k,secret=<hidden>,acl"), "shared"),
        (line("gpfs", "fs1", "rw,relatime"), "shared"),
        (line("cifs", "//10.0.0.7/models", "rw,vers=3.1.1,cache=strict,nobrl"), "node"),
        (line("cifs", "//10.0.0.7/models", "rw,vers=3.1.1,cache=strict"), "none"),
        (line("smb3", "//10.0.0.7/models", "rw,vers=3.1.1,nolock"), "node"),
        (line("fuse.juicefs", "JuiceFS:models", "rw,user_id=0,group_id=0"), "shared"),
        (line("fuse.glusterfs", "10.0.0.7:/models", "rw,user_id=0,group_id=0"), "shared"),
        (line("fuse.sshfs", "host:/models", "rw,user_id=0,group_id=0"), "node"),
        (line("fuse", "something", "rw,user_id=0,group_id=0"), "node"),
        (line("ext4", "/dev/sdb"), "shared"),
        (line("xfs", "/dev/mapper/data-models", "rw,attr2,inode64"), "shared"),
        (line("btrfs", "/dev/sdb", "rw,subvol=/models"), "shared"),
        (line("tmpfs", "tmpfs", "rw,size=64k"), "shared"),
        (line("overlay", "overlay", "rw,lowerdir=/a:/b,upperdir=/c,workdir=/d"), "shared"),
        (line("virtiofs", "models"), "unknown"),
        (line("9p", "models", "rw,trans=virtio"), "unknown"),
        (line("beegfs", "beegfs_nodev"), "unknown"),
    ],
    ids=lambda value: value.partition(" - ")[2][:60] or value,
)
def test_the_filesystem_and_its_options_say_whom_a_lock_excludes(text, locks):
    found = judged(text)
    assert (found.locks, found.atomic) == (locks, True), found
    assert found.point == "/models"
    assert found.reason


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("fuse", "mountpoint-s3"),
        ("fuse.mountpoint-s3", "mountpoint-s3"),
        ("fuse.s3fs", "s3fs"),
        ("fuse", "s3fs"),
        ("fuse.gcsfuse", "models-bucket"),
        ("fuse", "gcsfuse"),
        ("fuse", "blobfuse"),
        ("fuse", "blobfuse2"),
        ("fuse.blobfuse2", "blobfuse2"),
        ("fuse.goofys", "models-bucket"),
        ("fuse.rclone", "remote:models-bucket"),
    ],
)
def test_an_object_store_behind_fuse_is_refused_for_filling(kind, source):
    found = judged(line(kind, source, "rw,user_id=0,group_id=0,allow_other"))
    assert (found.locks, found.atomic) == ("node", False)
    with pytest.raises(VolumeError) as refused:
        mount.require_atomic(found)
    assert (refused.value.exit_code, refused.value.reason) == (6, "no-atomic-rename")
    assert kind in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("nfs4", "s3fs.example:/goofys"),
        ("ext4", "/dev/rclone"),
        ("fuse.juicefs", "JuiceFS:rclone-backup"),
        ("fuse.glusterfs", "gluster:/not-on-s3fs"),
    ],
)
def test_a_name_that_reads_like_an_object_store_is_none(kind, source):
    found = judged(line(kind, source, "rw,vers=4.1"))
    mount.require_atomic(found)
    assert (found.locks, found.source) == ("shared", source)


def test_options_of_the_mount_and_of_the_filesystem_are_both_told():
    found = judged(line("nfs4", "a:/b", "rw,vers=4.1", own="ro,noatime"))
    assert {"ro", "noatime", "vers=4.1"} <= set(found.options)
    assert (found.type, found.source) == ("nfs4", "a:/b")


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/", "/"),
        ("/models2", "/"),
        ("/model", "/"),
        ("/models", "/models"),
        ("/models/v1/pieces", "/models"),
        ("/models/tiny", "/models/tiny"),
        ("/models/tiny/v1", "/models/tiny"),
        ("/models/tiny2", "/models"),
        ("/my models/a\tb\\c\nd/v1", "/my models/a\tb\\c\nd"),
        ("/my models/a", "/"),
    ],
)
def test_the_innermost_mount_that_holds_the_path_counts(path, point):
    found = judged(
        line("nfs4", "a:/b", "rw,vers=4.1"),
        line("tmpfs", "tmpfs", point="/models/tiny"),
        line("xfs", r"/dev/my\040disk", point=r"/my\040models/a\011b\134c\012d"),
        path=path,
    )
    assert found.point == point
    assert found.source != r"/dev/my\040disk"


def test_of_two_mounts_at_one_place_the_later_covers_the_earlier():
    earlier, later = line("ext4", "/dev/sdb"), line("nfs4", "a:/b", "rw,vers=4.1")
    assert judged(earlier, later).type == "nfs4"
    assert judged(later, earlier).type == "ext4"


def test_lines_of_another_form_are_passed_over():
    whole = line("nfs4", "a:/b", "rw,vers=4.1")
    assert judged("", "nonsense", "1 2 3 - nfs4", whole, "436 22 0:58 / /models rw").type == "nfs4"
    bare = "436 22 0:58 / /models rw - tmpfs  rw"  # no optional fields, no source
    assert (judged(bare).type, judged(bare).source) == ("tmpfs", "")


@pytest.mark.parametrize("text", ["", "nonsense\n", line("ext4", "/dev/sdb", point="/elsewhere")])
def test_a_path_on_no_mount_is_an_error(text):
    with pytest.raises(VolumeError) as failed:
        mount.judge(text, "/models")
    assert failed.value.hint


# --- real mounts ---------------------------------------------------------------------------------

# Mounts filesystems named one, two and three, and prints on which of them warmer finds a path.
_PRELUDE = r"""
set -e
mount --make-rprivate /
cd "$1"
mkdir "a b" link
mount -t tmpfs one "a b"
mkdir -p "a b/in/side"
"""
_LOOK = "import sys; from warmer.observe import mount; print(mount.find(sys.argv[1]).source)"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")
@pytest.mark.parametrize(
    ("steps", "path", "source"),
    [
        ("", "a b/in/side", "one"),
        ('mount -t tmpfs two "a b/in"', "a b/in", "two"),
        ('mount -t tmpfs two "a b/in"', "a b", "one"),
        ('mount -t tmpfs two "a b"', "a b", "two"),
        ('mount --bind "a b/in" link', "link/side", "one"),
        ('rmdir link; ln -s "a b/in" link', "link/side", "one"),
        (
            'mount -t tmpfs two "a b/in"; mount -t tmpfs three "a b"; mkdir "a b/in"',
            *("a b/in", "three"),
        ),
    ],
)
def test_a_real_path_is_found_on_the_filesystem_it_is_on(tmp_path, steps, path, source):
    script = f'{_PRELUDE}{steps}\nexec "$2" -c "$3" "$1/$4"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", tmp_path, sys.executable, _LOOK, path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, source), done.stderr
