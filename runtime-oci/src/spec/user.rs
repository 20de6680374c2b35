//! Who a container runs as, by the image's own `/etc/passwd` and `/etc/group`.

use skiff_cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

/// The image's users and groups. Lines that cannot be read are skipped, as the C library does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// The primary group among them, as containerd has it.
    pub groups: Vec<u32>,
}

impl Accounts {
    /// Reads the two files' text.
    pub fn parse(passwd: &str, group: &str) -> Accounts {
        let users = passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Account { name: name.to_owned(), uid, gid })
        });
        let groups = group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
            let members = fields.next().unwrap_or_default().split(',').map(ToOwned::to_owned).collect();
            Some(Group { name: name.to_owned(), gid, members })
        });
        Accounts { users: users.collect(), groups: groups.collect() }
    }

    /// The container's user: what the pod says, else what the image says, else root.
    pub fn resolve(&self, security: &LinuxContainerSecurityContext, image: &str) -> Result<User, String> {
        let id = |value: i64| {
            u32::try_from(value).map_err(|_| format!("user or group ID {value} is out of range"))
        };
        let run_as_group = security.run_as_group.as_ref().map(|gid| id(gid.value)).transpose()?;
        let (name, group) = if let Some(uid) = &security.run_as_user {
            (id(uid.value)?.to_string(), None)
        } else if !security.run_as_username.is_empty() {
            (security.run_as_username.clone(), None)
        } else {
            match image.split_once(':') {
                Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
                None => (image.to_owned(), None),
            }
        };
        let account = self.account(if name.is_empty() { "0" } else { &name })?;
        let gid = match (run_as_group, &group) {
            (Some(gid), _) => gid,
            (None, Some(group)) if !group.is_empty() => self.gid(group)?,
            _ => account.gid,
        };
        let mut groups = vec![gid];
        if security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge
            && !account.name.is_empty()
        {
            let of_user = self.groups.iter().filter(|group| group.members.contains(&account.name));
            groups.extend(of_user.map(|group| group.gid));
        }
        for gid in &security.supplemental_groups {
            groups.push(id(*gid)?);
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(User { uid: account.uid, gid, groups })
    }

    /// By name or number. A number need not have an entry: its group is then root's.
    fn account(&self, user: &str) -> Result<Account, String> {
        if let Some(account) = self.users.iter().find(|account| account.name == user) {
            return Ok(account.clone());
        }
        let uid: u32 = user
            .parse()
            .map_err(|_| format!("unable to find user {user}: no matching entries in passwd file"))?;
        let listed = self.users.iter().find(|account| account.uid == uid).cloned();
        Ok(listed.unwrap_or(Account { name: String::new(), uid, gid: 0 }))
    }

    fn gid(&self, group: &str) -> Result<u32, String> {
        if let Some(group) = self.groups.iter().find(|entry| entry.name == group) {
            return Ok(group.gid);
        }
        group.parse().map_err(|_| format!("unable to find group {group}: no matching entries in group file"))
    }
}

#[cfg(test)]
mod tests {
    use skiff_cri::v1::Int64Value;

    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0:root:/root:/bin/sh\n#broken\napp:x:1000:1001::/:/bin/sh\nx:y:z\n",
            "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\n",
        )
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Result<User, String> {
        Ok(User { uid, gid, groups: groups.to_vec() })
    }

    #[test]
    fn the_images_user_is_looked_up_in_the_image() {
        let none = LinuxContainerSecurityContext::default();
        for (image, expected) in [
            ("", user(0, 0, &[0, 10])),
            ("app", user(1000, 1001, &[10, 1001])),
            ("1000", user(1000, 1001, &[10, 1001])),
            ("1000:5", user(1000, 5, &[5, 10])),
            ("app:wheel", user(1000, 10, &[10])),
            ("4000", user(4000, 0, &[0])),
            ("4000:4001", user(4000, 4001, &[4001])),
        ] {
            assert_eq!(accounts().resolve(&none, image), expected, "{image}");
        }
        assert!(
            accounts().resolve(&none, "nobody").unwrap_err().contains("no matching entries in passwd file")
        );
        assert!(
            accounts().resolve(&none, "app:none").unwrap_err().contains("no matching entries in group file")
        );
    }

    #[test]
    fn the_pods_user_wins_and_its_groups_are_added() {
        let mut security = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            supplemental_groups: vec![7, 7],
            ..Default::default()
        };
        assert_eq!(accounts().resolve(&security, "root:wheel"), user(1000, 1001, &[7, 10, 1001]));
        security.run_as_group = Some(Int64Value { value: 9 });
        security.set_supplemental_groups_policy(SupplementalGroupsPolicy::Strict);
        assert_eq!(accounts().resolve(&security, ""), user(1000, 9, &[7, 9]));
        security.run_as_user = Some(Int64Value { value: -1 });
        assert!(accounts().resolve(&security, "").is_err());
    }
}
