//! Files as they are found: present, private, whole.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::*;
use crate::exit::ExitCode;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A folder with `a/b/file`, all of them as they should be.
fn sound() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("a/b");
    fs::create_dir_all(&deep).unwrap();
    for folder in [&root.path().join("a"), &deep] {
        set_mode(folder, 0o755);
    }
    let file = deep.join("file");
    fs::write(&file, "secret").unwrap();
    set_mode(&file, 0o600);
    (root, file)
}

type Use = fn(&Path) -> Result<(), FileError>;

/// Every way in which a file that is there is used.
const USES: [(&str, Use); 7] = [
    ("read_private", |path| read_private(path).map(drop)),
    ("read_trusted", |path| read_trusted(path, 100).map(drop)),
    ("examine", examine),
    ("examine_private", examine_private),
    ("open_append", |path| open_append(path).map(drop)),
    ("open_write", |path| open_write(path).map(drop)),
    ("prepare_database", prepare_database),
];

fn refused_by_all(path: &Path, expected: impl Fn(&FileError) -> bool) {
    for (name, used) in USES {
        let error = used(path).expect_err(name);
        assert!(expected(&error), "{name}: {error:?}");
    }
}

fn taken_by_all(path: &Path) {
    for (name, used) in USES {
        if let Err(error) = used(path) {
            panic!("{name}: {error}");
        }
    }
}

/// Root may give files away, and then see what it would trust.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_file_that_only_this_user_can_change_is_taken() {
    let (_root, file) = sound();
    taken_by_all(&file);
    assert_eq!(fs::read(&file).unwrap(), b"secret");
}

#[test]
fn a_file_that_others_can_change_is_refused() {
    let (_root, file) = sound();
    for mode in [0o620, 0o602, 0o666] {
        set_mode(&file, mode);
        refused_by_all(
            &file,
            |error| matches!(error, FileError::OthersCanWrite { mode: found, .. } if *found == mode),
        );
    }
}

#[test]
fn a_file_below_a_folder_that_others_can_change_is_refused_however_deep() {
    let (root, file) = sound();
    for folder in [root.path().join("a"), root.path().join("a/b")] {
        // An ordinary user's own group may be private; root's never is.
        let modes = [0o775, 0o757, 0o777];
        for mode in modes.into_iter().skip(usize::from(!is_root())) {
            set_mode(&folder, mode);
            refused_by_all(
                &file,
                |error| matches!(error, FileError::OthersCanWrite { path, .. } if *path == folder),
            );
        }
        set_mode(&folder, 0o755);
    }
    taken_by_all(&file);
}

#[test]
fn sticky_counts_for_the_folders_above_and_never_for_the_one_that_holds_the_file() {
    let (root, file) = sound();
    set_mode(&root.path().join("a"), 0o1777);
    taken_by_all(&file);
    set_mode(&root.path().join("a/b"), 0o1777);
    refused_by_all(&file, |error| {
        matches!(error, FileError::OthersCanWrite { mode: 0o1777, .. })
    });
    // What is made there anew is nobody else's to exchange.
    let path = root.path().join("a/b/new");
    write_atomic(&path, b"1").unwrap();
    let error = write_new(&root.path().join("a/b/out"), b"1", 0o600).unwrap_err();
    assert_eq!(error.fix(), "use a folder of its own, such as one in there");
}

#[test]
fn the_files_and_folders_of_another_user_are_refused() {
    if !is_root() {
        return;
    }
    let (root, file) = sound();
    for part in [
        file.clone(),
        root.path().join("a/b"),
        root.path().join("a"),
        root.path().to_owned(),
    ] {
        chown(&part, Some(65_533), None).unwrap();
        refused_by_all(
            &file,
            |error| matches!(error, FileError::Owner { path, owner: 65_533, .. } if *path == part),
        );
        chown(&part, Some(0), None).unwrap();
    }
    taken_by_all(&file);
}

#[test]
fn a_link_is_not_followed_to_a_file() {
    let (root, file) = sound();
    let link = root.path().join("a/b/link");
    symlink(&file, &link).unwrap();
    refused_by_all(
        &link,
        |error| matches!(error, FileError::Link { path } if *path == link),
    );
    assert!(write_new(&link, b"new", 0o600).is_err());
    assert!(examine_state(&root.path().join("a/b"), &["link"], &[]).len() == 1);
    // One that leads nowhere makes nothing where it leads.
    let nowhere = root.path().join("a/b/nowhere");
    symlink(root.path().join("victim"), &nowhere).unwrap();
    refused_by_all(&nowhere, |error| matches!(error, FileError::Link { .. }));
    assert!(!root.path().join("victim").exists());
    // What is put in its place goes nowhere else.
    write_atomic(&link, b"new").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"secret");
    assert_eq!(fs::read(&link).unwrap(), b"new");
}

#[test]
fn a_link_to_a_folder_is_followed_when_it_is_ones_own() {
    let (root, file) = sound();
    let link = root.path().join("link");
    symlink("a/../a/b", &link).unwrap();
    let through = link.join("file");
    taken_by_all(&through);
    if is_root() {
        rustix::fs::chownat(
            CWD,
            &link,
            Some(rustix::fs::Uid::from_raw(65_533)),
            None,
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        refused_by_all(
            &through,
            |error| matches!(error, FileError::Owner { path, .. } if *path == link),
        );
        taken_by_all(&file);
    }
}

#[test]
fn links_in_a_circle_end() {
    let root = tempfile::tempdir().unwrap();
    symlink("b", root.path().join("a")).unwrap();
    symlink("a", root.path().join("b")).unwrap();
    assert!(matches!(
        read_trusted(&root.path().join("a/x"), 10),
        Err(FileError::Io { .. })
    ));
}

#[test]
fn what_is_no_file_is_refused_without_waiting_for_it() {
    let (root, _file) = sound();
    let pipe = root.path().join("a/b/pipe");
    rustix::fs::mknodat(
        CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let socket = root.path().join("a/b/socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    set_mode(&socket, 0o600);
    let refused = read_at_most(&pipe, 10).unwrap_err();
    assert!(matches!(refused, FileError::NotAFile { .. }), "{refused}");
    for path in [&pipe, &socket] {
        for (name, used) in USES {
            assert!(used(path).is_err(), "{name} {}", path.display());
        }
    }
    let folder = root.path().join("a/b");
    for (name, used) in &USES[..4] {
        let error = used(&folder).expect_err(name);
        assert!(matches!(error, FileError::NotAFile { .. }), "{error:?}");
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let (_root, path) = sound();
    for mode in [0o640, 0o604, 0o610, 0o601] {
        set_mode(&path, mode);
        assert!(
            matches!(read_private(&path), Err(FileError::OthersCanRead { mode: found, .. }) if found == mode)
        );
        assert!(examine_private(&path).is_err());
        examine(&path).unwrap();
    }
    set_mode(&path, 0o400);
    assert_eq!(read_private(&path).unwrap().as_slice(), b"secret");
    examine_private(&path).unwrap();
}

#[test]
fn a_byte_order_mark_is_named() {
    let (_root, path) = sound();
    for (mark, encoding) in [
        (&b"\xef\xbb\xbf"[..], "UTF-8"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ] {
        fs::write(&path, [mark, b"text"].concat()).unwrap();
        for error in [
            read_private(&path).unwrap_err(),
            read_trusted(&path, 100).unwrap_err(),
        ] {
            assert!(
                matches!(error, FileError::Marked { encoding: found, .. } if found == encoding),
                "{error:?}"
            );
        }
    }
}

#[test]
fn a_program_is_judged_with_every_link_on_the_way_to_it() {
    let (root, file) = sound();
    set_mode(&file, 0o755);
    let link = root.path().join("a/program");
    symlink("b/file", &link).unwrap();
    assert_eq!(
        examine_program(&link, Owners::RootAndOwn).unwrap() & 0o111,
        0o111
    );
    // A folder that only holds the link decides as much as the one that holds the program.
    for folder in ["a", "a/b"] {
        let folder = root.path().join(folder);
        set_mode(&folder, 0o777);
        assert!(
            examine_program(&link, Owners::RootAndOwn).is_err(),
            "{folder:?}"
        );
        set_mode(&folder, 0o755);
    }
    set_mode(&file, 0o775);
    assert!(examine_program(&link, Owners::RootAndOwn).is_err());
    examine_program(Path::new("/bin/sh"), Owners::Root).unwrap();
}

#[test]
fn the_files_of_this_user_are_not_roots() {
    if is_root() {
        return;
    }
    let (_root, file) = sound();
    assert!(matches!(
        examine_program(&file, Owners::Root),
        Err(FileError::Owner {
            own_is_trusted: false,
            ..
        })
    ));
}

#[test]
fn a_folder_is_listed_and_read_as_it_was_opened() {
    let (root, file) = sound();
    let opened = Folder::open(file.parent().unwrap(), Owners::RootAndOwn).unwrap();
    // Exchanged meanwhile.
    fs::rename(root.path().join("a"), root.path().join("old")).unwrap();
    fs::create_dir_all(root.path().join("a/b")).unwrap();
    fs::write(root.path().join("a/b/file"), "forged").unwrap();
    assert_eq!(opened.names().unwrap(), ["file"]);
    assert_eq!(opened.read("file".as_ref(), 100).unwrap(), b"secret");
}

#[test]
fn a_state_folder_is_examined_without_a_trace() {
    let (root, _file) = sound();
    let state = root.path().join("a/b/state/deep");
    assert!(examine_state(&state, &["x"], &["x.db"]).is_empty());
    assert!(!root.path().join("a/b/state").exists());
    fs::create_dir_all(&state).unwrap();
    set_mode(&root.path().join("a/b/state"), 0o755);
    set_mode(&state, 0o700);
    assert!(examine_state(&state, &["x"], &["x.db"]).is_empty());
    symlink("/etc/passwd", state.join("x")).unwrap();
    symlink("/etc/passwd", state.join("x.db-wal")).unwrap();
    assert_eq!(examine_state(&state, &["x"], &["x.db"]).len(), 2);
    set_mode(&state, 0o770);
    assert!(matches!(
        examine_state(&state, &[], &[])[..],
        [FileError::OthersCanWrite { .. }]
    ));
    fs::write(root.path().join("a/b/plain"), "").unwrap();
    assert!(matches!(
        examine_state(&root.path().join("a/b/plain"), &[], &[])[..],
        [FileError::NotAFolder { .. }]
    ));
}

#[test]
fn what_is_wrong_says_what_to_do() {
    let (_root, file) = sound();
    set_mode(&file, 0o666);
    let error = examine(&file).unwrap_err();
    assert_eq!(error.fix(), format!("run: chmod go-w {}", file.display()));
    assert!(error.to_string().ends_with(&error.fix()), "{error}");
    let blank = FileError::OthersCanWrite {
        path: "/it's a/file".into(),
        mode: 0o666,
        is_private: false,
    };
    assert_eq!(blank.fix(), r"run: chmod go-w '/it'\''s a/file'");
}

#[test]
fn a_private_file_that_others_can_change_is_closed_to_them_in_one_step() {
    let (_root, file) = sound();
    let to_run = format!("run: chmod 600 {}", file.display());
    for mode in [0o666, 0o622, 0o644] {
        set_mode(&file, mode);
        assert_eq!(read_private(&file).unwrap_err().fix(), to_run, "{mode:o}");
        assert_eq!(
            examine_private(&file).unwrap_err().fix(),
            to_run,
            "{mode:o}"
        );
    }
}

#[test]
fn a_path_that_ends_as_that_of_a_folder_is_not_made_a_file() {
    let (root, _file) = sound();
    for end in ["new/", "new/."] {
        let path = root.path().join("a/b").join(end);
        let writes = [
            write_new(&path, b"1", 0o600),
            write_atomic(&path, b"1"),
            replace_judged(&path, b"1", 0o600, |_before| Ok(())),
        ];
        for written in writes {
            let refused = written.unwrap_err();
            assert!(matches!(refused, FileError::NotAFile { .. }), "{refused}");
        }
    }
    assert!(!root.path().join("a/b/new").exists());
}

#[test]
fn an_atomic_write_replaces_the_contents_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    write_atomic(&path, b"old").unwrap();
    write_atomic(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_failed_atomic_write_keeps_the_old_contents_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("taken");
    fs::create_dir(&path).unwrap();
    let error = write_atomic(&path, b"new").unwrap_err();
    assert!(
        matches!(
            error,
            FileError::Io {
                action: "replace",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(path.is_dir());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_second_lock_names_the_process_that_has_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let first = lock_folder(folder.path()).unwrap();
    let error = lock_folder(folder.path()).unwrap_err();
    let holder = std::process::id();
    assert!(
        error
            .to_string()
            .ends_with(&format!("is in use by process {holder}")),
        "{error}"
    );
    drop(first);
    drop(lock_folder(folder.path()).unwrap());
}

#[test]
fn a_folder_that_is_removed_before_its_lock_is_not_held() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("made");
    for is_made_anew in [false, true] {
        create_private_folder(&path).unwrap();
        let opened = File::open(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        if is_made_anew {
            create_private_folder(&path).unwrap();
        }
        let error = hold_opened(&path, opened).unwrap_err();
        assert!(error.is_missing(), "{error}");
    }
    drop(hold_folder(&path).unwrap());
}

#[test]
fn a_folder_is_made_by_one_call() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("above/made");
    let made = make_private_folder(&path).unwrap();
    let names: Vec<_> = made.iter().map(|made| made.file_name().unwrap()).collect();
    assert_eq!(names, ["above", "made"]);
    assert!(make_private_folder(&path).unwrap().is_empty());
    // Where somebody has put something, it stays, and so does what is above it.
    let file = path.join("somebody's");
    fs::write(&file, "").unwrap();
    remove_made(&made);
    assert!(file.exists());
    fs::remove_file(&file).unwrap();
    remove_made(&made);
    assert!(root.path().exists() && !root.path().join("above").exists());
}

#[test]
fn a_file_above_the_limit_is_not_read() {
    let (_root, path) = sound();
    fs::write(&path, [0; 11]).unwrap();
    for read in [read_trusted, read_at_most] {
        assert!(matches!(
            read(&path, 10),
            Err(FileError::TooLarge { limit: 10, .. })
        ));
        assert_eq!(read(&path, 11).unwrap().len(), 11);
    }
}

#[test]
fn a_credential_may_show_as_open_to_a_group_that_is_roots() {
    let unit = Path::new("/run/credentials/viworks-gateway-agent.service");
    for mode in [0o400, 0o440] {
        assert!(is_handed_over(unit, (0, 0), mode), "{mode:o}");
    }
    // What root would never do with one.
    for mode in [0o444, 0o460, 0o640, 0o600, 0o4440] {
        assert!(!is_handed_over(unit, (0, 0), mode), "{mode:o}");
    }
    for owners in [(0, 5), (5, 0)] {
        assert!(!is_handed_over(unit, owners, 0o440), "{owners:?}");
    }
    for folder in ["/run/credentials.d/x", "/run", "/etc/viworks"] {
        assert!(
            !is_handed_over(Path::new(folder), (0, 0), 0o440),
            "{folder}"
        );
    }
}

#[test]
fn what_is_mounted_is_told_from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    assert!(is_mount_point(Path::new("/proc")));
    assert!(!is_mount_point(folder.path()));
    assert!(!is_mount_point(&folder.path().join("missing")));
    let link = folder.path().join("link");
    symlink("/proc", &link).unwrap();
    assert!(!is_mount_point(&link), "a link can be renamed");
}

#[test]
fn a_name_that_is_taken_is_a_conflict_and_a_file_that_is_missing_one_to_be_named_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csr");
    let missing = read_private(&path).unwrap_err();
    assert_eq!(missing.exit_code(), ExitCode::Config);
    write_new(&path, b"first", 0o600).unwrap();
    let taken = write_new(&path, b"second", 0o600).unwrap_err();
    assert!(taken.is_taken());
    assert_eq!(taken.exit_code(), ExitCode::Conflict);
    assert_eq!(taken.named_fix(), None);
    assert!(missing.named_fix().unwrap().contains("is there"));
    let folder = read_at_most(folder.path(), 9).unwrap_err();
    assert!(folder.named_fix().unwrap().contains("not a folder"));
}

#[test]
fn what_came_to_a_name_is_judged_without_it_and_gets_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list");
    let names = || names(folder.path()).unwrap();
    replace_judged(&path, b"first", 0o644, |_there| panic!("nothing is there")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    replace_judged(&path, b"second", 0o644, |there| {
        assert_eq!(fs::read(there).unwrap(), b"first");
        // Whoever looks for it finds the new one already.
        assert_eq!(fs::read(&path).unwrap(), b"second");
        Ok(())
    })
    .unwrap();
    assert_eq!(names(), ["list"]);
    let kept = fs::metadata(&path).unwrap().ino();
    let refuse = |there: &Path| {
        Err(FileError::NotAFile {
            path: there.to_owned(),
        })
    };
    let refused = replace_judged(&path, b"third", 0o644, refuse).unwrap_err();
    assert!(matches!(refused, FileError::NotAFile { .. }), "{refused:?}");
    assert_eq!(fs::metadata(&path).unwrap().ino(), kept);
    assert_eq!(names(), ["list"]);
    // What takes the name while the other one is judged is not lost either.
    let refused = replace_judged(&path, b"third", 0o644, |there| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody's").unwrap();
        refuse(there)
    });
    refused.unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    let texts = names().into_iter();
    let texts: Vec<_> = texts
        .map(|name| fs::read(folder.path().join(name)).unwrap())
        .collect();
    assert_eq!(texts.len(), 2);
    assert!(texts.contains(&b"somebody's".to_vec()), "{texts:?}");
}

#[test]
fn a_path_is_followed_to_where_its_last_link_leads() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let (link, file) = (root.join("link"), root.join("sub/file"));
    assert_eq!(led_to(&link).unwrap(), link, "nothing is there");
    symlink("sub/file", &link).unwrap();
    // Where even the folder is missing, there is no such place.
    assert!(led_to(&link).unwrap_err().is_missing());
    fs::create_dir(root.join("sub")).unwrap();
    set_mode(&root.join("sub"), 0o755);
    assert_eq!(led_to(&link).unwrap(), file);
    fs::write(&file, "there").unwrap();
    assert_eq!(led_to(&link).unwrap(), file);
    assert_eq!(led_to(&file).unwrap(), file);
    fs::remove_file(&link).unwrap();
    symlink("link", &link).unwrap();
    let round = led_to(&link).unwrap_err();
    assert_eq!(round.exit_code(), ExitCode::Config, "{round}");
    if is_root() {
        let theirs = root.join("theirs");
        symlink(&file, &theirs).unwrap();
        std::os::unix::fs::lchown(&theirs, Some(65_533), None).unwrap();
        assert!(matches!(led_to(&theirs), Err(FileError::Owner { .. })));
    }
}

#[test]
fn a_file_that_cannot_be_made_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing/a.csr");
    let missing = write_new(&path, b"first", 0o600).unwrap_err();
    assert_eq!(missing.exit_code(), ExitCode::Config);
    assert!(missing.named_fix().unwrap().contains("in a folder that"));
    let full = FileError::io("write", &path)(Errno::NOSPC.into());
    assert!(full.is_no_room());
    assert_eq!(full.exit_code(), ExitCode::Unavailable);
    assert!(full.named_fix().unwrap().contains("make room"));
    let broken = FileError::io("write", &path)(Errno::IO.into());
    assert_eq!(broken.exit_code(), ExitCode::Unavailable);
    assert!(broken.named_fix().unwrap().contains("dmesg"));
}
