//! What the page says, in English and Japanese.

use std::borrow::Cow;

/// A sentence in both languages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) en: Cow<'static, str>,
    pub(super) ja: Cow<'static, str>,
}

impl Words {
    const fn new(en: &'static str, ja: &'static str) -> Self {
        Self {
            en: Cow::Borrowed(en),
            ja: Cow::Borrowed(ja),
        }
    }

    pub(super) const NOT_SUBSCRIBED: Self = Self::new(
        "This instance is not a subscriber of this relay.",
        "このサーバーはこのリレーに参加していません。",
    );
    pub(super) const NOT_A_HOST: Self =
        Self::new("That is not a host name.", "ホスト名として読み取れませんでした。");
    pub(super) const TOO_MANY_OPT_OUTS: Self = Self::new(
        "Too many domains opted out here: ask the operator of this relay.",
        "除外されているドメインが多すぎます。リレーの運営者に連絡してください。",
    );
    pub(super) const TOO_LATE: Self = Self::new(
        "This page is too old, or was not made here: begin again.",
        "このページは期限切れか、ここで作られたものではありません。最初からやり直してください。",
    );
    pub(super) const TOO_MANY: Self = Self::new(
        "Too many attempts: try again in a few minutes.",
        "試行回数が多すぎます。数分後にもう一度お試しください。",
    );
    pub(super) const FROM_ELSEWHERE: Self = Self::new(
        "This was sent by another site: begin here.",
        "別のサイトから送信されました。このページから始めてください。",
    );
    pub(super) const NOT_UNDERSTOOD: Self = Self::new(
        "The form was not understood.",
        "フォームの内容を読み取れませんでした。",
    );
    pub(super) const OTHER_HOST: Self = Self::new(
        "The post must be on the instance itself.",
        "投稿はそのサーバー自身のものでなければなりません。",
    );
    pub(super) const NO_TOKEN: Self = Self::new(
        "The post does not contain the token.",
        "投稿にトークンが含まれていません。",
    );
    pub(super) const NOT_STAFF: Self = Self::new(
        "The instance does not name this account as its contact or staff: post with the contact account, or use DNS.",
        "このアカウントは、サーバーの連絡先や管理者として公開されていません。連絡先のアカウントで投稿するか、DNS を使ってください。",
    );
    pub(super) const NO_RECORD: Self = Self::new(
        "There is no TXT record with the token yet: DNS may need some minutes.",
        "トークンの TXT レコードがまだ見つかりません。DNS に反映されるまで数分かかることがあります。",
    );
    pub(super) const BY_OPERATOR: Self = Self::new(
        "The operator of this relay set this filter: ask them.",
        "このフィルターはリレーの運営者が設定したものです。運営者に連絡してください。",
    );
    pub(super) const KEPT: Self = Self::new("Kept. It counts from now on.", "保存しました。今から有効です。");
    pub(super) const NOT_NOW: Self = Self::new(
        "Not kept: try again in a moment.",
        "保存できませんでした。しばらくしてからもう一度お試しください。",
    );

    /// Why something did not work, as it was said.
    pub(super) fn because(why: String) -> Self {
        let why: String = why.chars().take(300).collect();
        Self {
            ja: format!("うまくいきませんでした: {why}").into(),
            en: format!("That did not work: {why}").into(),
        }
    }
}
