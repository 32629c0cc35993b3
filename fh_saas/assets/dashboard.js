// Keeps #live up to date without a reload, and sends on what goes on by itself. Without it the pages read as well.
const rest = ms => new Promise(done => setTimeout(done, ms))
const say = document.getElementById('say')

// Somebody is at it: marks text, types or has typed, has opened a question
const busy = live => !getSelection().isCollapsed && live.contains(getSelection().anchorNode)
  || live.querySelector('input:focus, select:focus, textarea:focus, details[id=d-del][open]')
  || [...live.querySelectorAll('input')].some(o => o.value !== o.defaultValue)

async function refresh(old) {
  const answer = await fetch(location.href, {cache: 'no-store', headers: {'x-live': '1'}, redirect: 'error'})
  if (!answer.ok) throw new Error(answer.status)
  const live = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById('live')
  if (!live) throw new Error('no such part')
  for (const d of live.querySelectorAll('details')) d.open = !!document.getElementById(d.id)?.open
  if (old.isEqualNode(live) || busy(old)) return +live.dataset.next
  const links = [...old.querySelectorAll('a, button, summary, pre')], at = links.indexOf(document.activeElement)
  const same = e => [...live.querySelectorAll(e.tagName)].find(o => o.id === e.id && o.href === e.href && o.textContent === e.textContent)
  const next = at >= 0 && same(links[at])
  old.replaceWith(live)
  next && next.focus({preventScroll: true})
  return +live.dataset.next
}

async function follow() {
  for (let next = +document.getElementById('live').dataset.next; ; await rest(next)) {
    while (document.hidden) await rest(500)
    try {
      next = await refresh(document.getElementById('live'))
      say.textContent = ''
      document.body.classList.remove('away')
    } catch {
      next = Math.min(15000, next * 1.5)
      say.textContent = 'The server does not answer. Trying again…'
      document.body.classList.add('away')
    }
  }
}

const go = document.querySelector('form.go')
if (go) rest(200).then(() => go.submit())
else if (document.getElementById('live') && location.protocol !== 'file:') rest(+document.getElementById('live').dataset.next).then(follow)
