package datadir

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func probeLocks(f, g *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: 120, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return err
	}
	other := lock
	err := unix.FcntlFlock(g.Fd(), unix.F_OFD_SETLK, &other)
	if err == nil {
		return errors.New("two descriptors got the same lock")
	}
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
		return err
	}
	lock.Type = unix.F_UNLCK
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return err
	}
	return unix.FcntlFlock(g.Fd(), unix.F_OFD_SETLK, &other)
}

// networkTypes are the f_type values of statfs(2) whose files other machines
// may change, or whose locks and mappings are only of this machine.
var networkTypes = map[uint32]string{
	0x6969:     "NFS",
	0x517b:     "SMB",
	0xfe534d42: "SMB2",
	0xff534d42: "CIFS",
	0x01021997: "9p",
	0x00c36400: "Ceph",
	0x5346414f: "AFS",
	0x6b414653: "AFS",
	0x564c:     "NCP",
	0x73757245: "Coda",
	0x0bd00bd0: "Lustre",
	0x47504653: "GPFS",
	0x19830326: "BeeGFS",
	0x7461636f: "OCFS2",
	0x01161970: "GFS2",
	0x786f4256: "vboxsf",
	0xbacbacbc: "VMware shared folders",
	0x013111a8: "IBRIX",
}

// fuseType covers local and remote file systems alike.
const fuseType = 0x65735546

// localFUSE are the names, in /proc/self/mountinfo, of those that are local.
var localFUSE = map[string]bool{"fuseblk": true, "fuse.fuse-overlayfs": true, "fuse.ntfs-3g": true}

// refuseNetwork refuses file systems that are remote, or FUSE and not known to
// be local.
func refuseNetwork(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("ask for the file system: %w", err)
	}
	if uint32(fs.Type) != fuseType {
		return refuseType(uint32(fs.Type))
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("ask for the file system: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("ask for the file system: %w", err)
	}
	return refuseFUSE(mountType(mounts, unix.Major(st.Dev), unix.Minor(st.Dev)))
}

func refuseFUSE(name string) error {
	if localFUSE[name] {
		return nil
	}
	return fmt.Errorf("file system is %q: %w", name, ErrNetworkFS)
}

// mountType finds the type of a device in the text of proc(5) mountinfo: the
// device is the third field, the type the first one after a lone hyphen.
func mountType(mountinfo []byte, major, minor uint32) string {
	dev := fmt.Sprintf("%d:%d", major, minor)
	for line := range strings.Lines(string(mountinfo)) {
		left, right, ok := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 3 || fields[2] != dev {
			continue
		}
		if types := strings.Fields(right); len(types) > 0 {
			return types[0]
		}
	}
	return "unknown"
}

func refuseType(t uint32) error {
	if name, ok := networkTypes[t]; ok {
		return fmt.Errorf("file system is %s: %w", name, ErrNetworkFS)
	}
	return nil
}
